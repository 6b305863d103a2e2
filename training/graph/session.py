"""Running a graph in training: an ONNX Runtime session, and what it is fed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime


def cpu_session(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session on the CPU that logs errors only; its threads sleep while they wait."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


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
