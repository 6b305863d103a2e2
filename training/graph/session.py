"""Running a graph in training: an ONNX Runtime session."""

from __future__ import annotations

import onnx
import onnxruntime


def cpu_session(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session on the CPU that logs errors only; its threads sleep while they wait."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
