"""Running the decision graph, from any thread, with as little around it as ONNX Runtime allows."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import onnxruntime

OUTPUTS = ("success", "output_tokens", "cost_usd", "tier", "familiarity", "cluster")


class Engine:
    """The graph of a bundle in an ONNX Runtime session of its own; safe to share between threads.

    What a thread fed last stays bound for it, so that prices and dials, the same objects from request to
    request, are handed over once.
    """

    def __init__(self, graph: bytes, n_threads: int) -> None:
        """n_threads: of one call. Raises what onnxruntime raises where the graph cannot be loaded.

        Raises ValueError where the graph lacks an output.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        found = {output.name for output in self._session.get_outputs()}
        if missing := [name for name in OUTPUTS if name not in found]:
            raise ValueError(f"the graph has no output {', '.join(missing)}; train the bundle again")
        self._of_thread = threading.local()

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The OUTPUTS: the first three float32 (n, n_tiers), then tier int64, familiarity float32, cluster int64, (n).

        feeds: every input of the graph, C-contiguous, in its own type. An array must not be changed as long
        as it is fed again as the same object.
        """
        n = len(feeds["input_ids"])
        try:
            binding, bound, bound_n = self._of_thread.binding
        except AttributeError:
            binding, bound, bound_n = self._session.io_binding(), {}, -1
        if n != bound_n:  # ONNX Runtime writes into the arrays of the run before: right for as many prompts only
            for name in OUTPUTS:
                binding.bind_output(name)
            self._of_thread.binding = binding, bound, n
        for name, array in feeds.items():
            if bound.get(name) is not array:
                binding.bind_cpu_input(name, array)
                bound[name] = array  # also keeps its memory alive, which the binding only points to
        self._session.run_with_iobinding(binding)
        answers: list[np.ndarray] = binding.copy_outputs_to_cpu()
        return answers
