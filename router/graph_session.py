"""Sessions of ONNX Runtime: one for each graph that is in use."""

from __future__ import annotations

import hashlib
import os
from weakref import WeakValueDictionary

import onnxruntime

_SESSIONS: WeakValueDictionary[tuple[str, int, int], onnxruntime.InferenceSession] = WeakValueDictionary()
"""The sessions in use, by the SHA-256 of the graph, the threads of a run, and the process, since a session's threads
do not follow into a forked one.
"""


def session_of(graph: bytes, n_threads: int) -> onnxruntime.InferenceSession:
    """A session that runs this graph, safe to share between threads; the same graph has one as long as it is in use.

    Bundles often have a graph in common: a champion and its lowered promise, a bundle that is checked while it serves.
    graph: the content of an ONNX file. n_threads: threads of one run.
    Raises onnxruntime's own errors where the graph cannot be loaded.
    """
    key = hashlib.sha256(graph).hexdigest(), n_threads, os.getpid()
    session = _SESSIONS.get(key)
    if session is None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        _SESSIONS[key] = session
    return session
