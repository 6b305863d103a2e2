"""Running the decision graph from any thread, with as little overhead as ONNX Runtime allows."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from router.graph_session import session_of

OUTPUTS = ("success", "output_tokens", "cost_usd", "tier", "familiarity", "cluster")
PER_TIER = OUTPUTS[:3]
WHOLE = ("tier", "cluster")
BATCH_SIZE = 64


class Engine:
    """The graph of a bundle in a session of ONNX Runtime; safe to share between threads.

    Each thread keeps the inputs of its last run bound. Prices and dials are the same objects from request to request,
    so ONNX Runtime receives them only once.
    """

    def __init__(self, graph: bytes, n_threads: int) -> None:
        """Load the graph.

        n_threads: threads of one run.
        Raises ValueError where the graph lacks an output, and onnxruntime's own errors where it cannot be loaded.
        """
        self._session = session_of(graph, n_threads)
        found = {output.name for output in self._session.get_outputs()}
        if missing := [name for name in OUTPUTS if name not in found]:
            raise ValueError(f"the graph has no output {', '.join(missing)}; train the bundle again")
        self._of_thread = threading.local()

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run the graph on n prompts and return its OUTPUTS in their order.

        feeds: every input of the graph, C-contiguous, in its own type. Do not change an array that will be fed again:
        the engine recognises it by identity and would not see the change.
        Returns three float32 (n, n_tiers), then tier int64, familiarity float32 and cluster int64, each (n,).
        """
        n = len(feeds["input_ids"])
        try:
            binding, bound, bound_n = self._of_thread.binding
        except AttributeError:
            binding, bound, bound_n = self._session.io_binding(), {}, -1
        if n != bound_n:  # ONNX Runtime writes into the arrays of the last run, which fit the same n only.
            for name in OUTPUTS:
                binding.bind_output(name)
            self._of_thread.binding = binding, bound, n
        for name, array in feeds.items():
            if bound.get(name) is not array:
                binding.bind_cpu_input(name, array)
                bound[name] = array  # The binding only points to the memory; this keeps it alive.
        self._session.run_with_iobinding(binding)
        answers: list[np.ndarray] = binding.copy_outputs_to_cpu()
        return answers

    def wrong_answers(self, n_tiers: int, n_clusters: int) -> str:
        """What is wrong with the form of the answers on two prompts, in words; empty where all is as it must be.

        One of the prompts may ask every tier, the other none. n_tiers, n_clusters: of the bundle.
        """
        n = 2
        prices, numbers = np.ones((n, n_tiers), np.float32), np.zeros(n, np.float32)
        feeds = {
            **padded([[0, 0, 0], [0]]),
            "context_tokens": numbers,
            "usd_per_mtok_input": prices,
            "usd_per_mtok_output": prices,
            "eligible": np.array([[True] * n_tiers, [False] * n_tiers]),
            "worth_usd": numbers,
            "slack": numbers,
        }
        try:
            answers = dict(zip(OUTPUTS, self.run(feeds), strict=True))
        except Exception as error:  # ONNX Runtime raises bare subclasses of Exception.
            return f"cannot be run ({error})"
        for name, answer in answers.items():
            shape = (n, n_tiers) if name in PER_TIER else (n,)
            kind = np.int64 if name in WHOLE else np.float32
            if answer.shape != shape or answer.dtype != kind:
                return f"answers {name} as {answer.dtype} {answer.shape}; expected {kind.__name__} {shape}"
            if not np.isfinite(answer).all():
                return f"answers {name} with numbers that are not finite"
        asked, none = answers["tier"].tolist()
        if not (0 <= asked < n_tiers and none == -1):
            return (
                f"answers tier {asked} where all may be asked and {none} where none may; expected one of them, and -1"
            )
        if not all(0 <= cluster < n_clusters for cluster in answers["cluster"].tolist()):
            return f"answers cluster {answers['cluster'].tolist()}; expected numbers below {n_clusters}"
        return ""


def batches(ids: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """The rows of prompts of similar length, shortest first: int arrays (n_rows,), at most BATCH_SIZE rows each.

    ids: the tokens of each prompt. A batch is padded to its longest prompt, so similar lengths waste least.
    """
    order = np.argsort([len(row) for row in ids], kind="stable")
    for start in range(0, len(order), BATCH_SIZE):
        yield order[start : start + BATCH_SIZE]


def padded(ids: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Token ids as `input_ids` and `attention_mask`, both int64 (n, longest); the mask is 0 where a row was filled up.

    ids: of at least one prompt; a row may be empty.
    """
    longest = max(len(row) for row in ids)
    input_ids = np.zeros((len(ids), longest), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, tokens in enumerate(ids):
        input_ids[row, : len(tokens)] = tokens
        attention_mask[row, : len(tokens)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
