"""What `latency.py` times, one contender per process.

Started as `python contenders.py serve` or `python contenders.py footprint`, with the environment of `ENVIRONMENT`;
speaks JSON lines on stdin and stdout. At module level only the standard library is imported: each contender pays
for its own packages, and they find their one-thread settings already in place.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # litellm asks the network for prices on import otherwise
}
"""Of a contender's process: one thread, no network."""

N_HEADS = 5
N_ROUNDS = 60
N_EXAMPLES = 24 * N_HEADS
"""Prompts of the log that semantic-router gets as utterances; they are never timed."""

Decide = Callable[[Any], object]


@dataclass(frozen=True)
class Setting:
    """What contenders are made from: folders of bundles ("" where there is none), and prompts as examples."""

    static: str
    minilm: str
    examples: list[str]


# ---- the floor, and ours ---------------------------------------------------------------------------


def bare_tokenizer(setting: Setting) -> Decide:
    """The floor: what any router that reads the prompt must pay, with the call that most people make."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(setting.static) / "tokenizer.json")).encode


def bare_tokenizer_without_offsets(setting: Setting) -> Decide:
    """The floor with the faster call that the router makes, which leaves out where each token stood."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(setting.static) / "tokenizer.json"))
    return lambda prompt: tokenizer.encode_batch_fast([prompt])


def bare_minilm_tokenizer(setting: Setting) -> Decide:
    """The floor of whatever runs MiniLM."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(setting.minilm) / "tokenizer.json")).encode


def static_bundle(setting: Setting) -> Decide:
    """The whole decision with the static encoder."""
    from router import Router

    return Router.load(setting.static).route


def static_batch(setting: Setting) -> Decide:
    """The whole decision for a list of prompts."""
    from router import Router

    return Router.load(setting.static).route_batch


def minilm_bundle(setting: Setting) -> Decide:
    """The whole decision with MiniLM."""
    from router import Router

    return Router.load(setting.minilm).route


def bare_minilm_encoder(setting: Setting) -> Decide:
    """Tokenizer and transformer of the minilm bundle, nothing behind: its graph cut at the sentence vector."""
    import numpy as np
    import onnx
    import onnxruntime
    from onnx.utils import Extractor
    from tokenizers import Tokenizer

    from router.bundle.manifest import GRAPH_FILE, TOKENIZER_FILE, read_manifest

    folder = Path(setting.minilm)
    max_chars = read_manifest(folder).encoder.max_chars
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    whole = onnx.load(folder / GRAPH_FILE)
    whole.graph.value_info.append(
        onnx.helper.make_tensor_value_info("vectors", onnx.TensorProto.FLOAT, ["n", "n_dims"])
    )
    graph = Extractor(whole).extract_model(["input_ids", "attention_mask"], ["vectors"])
    options = onnxruntime.SessionOptions()  # those of router.bundle
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def embed(prompt: str) -> Any:
        ids = tokenizer.encode_batch_fast([prompt[:max_chars]])[0].ids
        feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
        return session.run(["vectors"], feeds)[0]

    return embed


# ---- others ----------------------------------------------------------------------------------------


def litellm_weighted(setting: Setting) -> Decide:
    """LiteLLM's complexity router, weighted heuristic."""
    return _litellm_classifier("heuristic")


def litellm_heuristic_v2(setting: Setting) -> Decide:
    """LiteLLM's complexity router, heuristic_v2."""
    return _litellm_classifier("heuristic_v2")


def _litellm_classifier(classifier_type: str) -> Decide:
    """The classification alone; the choice of a model behind it, which LiteLLM's own requests pay too, is left out."""
    from litellm.router_strategy.complexity_router.complexity_router import ComplexityRouter

    router = ComplexityRouter(
        model_name="benchmark",
        litellm_router_instance=None,  # only the choice of a model asks it
        complexity_router_config={"classifier_type": classifier_type},
    )
    return lambda prompt: _result(router.aclassify(prompt))


def _result(coroutine: Coroutine[Any, Any, object]) -> object:
    """The result of a coroutine that waits for nothing, without the cost of an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("the coroutine waits for something; expected one that only computes")


def sentence_transformers_lightgbm(setting: Setting) -> Decide:
    """The pipeline one would write first: SentenceTransformer.encode, then a LightGBM head per tier.

    The heads have the size of ours and are fitted on noise: this says something about speed only.
    """
    import lightgbm
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer

    from training.encoders.transformer import packaged_weights
    from training.fit.classifier import lightgbm_settings

    torch.set_num_threads(1)
    model = SentenceTransformer(str(packaged_weights()), device="cpu")
    model.max_seq_length = 256  # where our own bundle cuts
    n_rows, n_dims = 2000, model.get_embedding_dimension()
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((n_rows, n_dims)).astype(np.float32) / np.sqrt(n_dims)
    settings = {**lightgbm_settings(n_rows, seed=0), "objective": "regression"}
    heads = [lightgbm.train(settings, lightgbm.Dataset(noise, rng.random(n_rows)), N_ROUNDS) for _ in range(N_HEADS)]

    def decide(prompt: str) -> int:
        embedding = model.encode([prompt], show_progress_bar=False)
        return int(np.argmax([head.predict(embedding, num_threads=1)[0] for head in heads]))

    return decide


def semantic_router(setting: Setting) -> Decide:
    """Aurelio's semantic-router around the bare MiniLM encoder; the examples are dealt to its routes in turn."""
    from semantic_router import IndexedRouter, Route
    from semantic_router.encoders import DenseEncoder
    from semantic_router.index import LocalIndex

    embed = bare_minilm_encoder(setting)

    class LocalMiniLM(DenseEncoder):
        """The same graph as that of the bare encoder."""

        def __call__(self, docs: list[str]) -> list[list[float]]:
            return [embed(doc)[0].tolist() for doc in docs]

    routes = [Route(name=f"tier {n}", utterances=setting.examples[n::N_HEADS]) for n in range(N_HEADS)]
    return IndexedRouter(encoder=LocalMiniLM(name="local MiniLM"), routes=routes, index=LocalIndex())


# ---- the list --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """prepare: imports, loads, and returns what is timed.

    needs: the bundle without which it is left out.
    is_slow: takes ten milliseconds and more, so it gets a part of the prompts.
    """

    prepare: Callable[[Setting], Decide]
    needs: str | None = None
    is_slow: bool = False


CONTENDERS = {
    "bare tokenizer": Contender(bare_tokenizer, "static"),
    "bare tokenizer, no offsets": Contender(bare_tokenizer_without_offsets, "static"),
    "static bundle": Contender(static_bundle, "static"),
    "LiteLLM heuristic_v2": Contender(litellm_heuristic_v2),
    "LiteLLM weighted heuristic": Contender(litellm_weighted),
    "bare MiniLM tokenizer": Contender(bare_minilm_tokenizer, "minilm"),
    "bare MiniLM encoder": Contender(bare_minilm_encoder, "minilm", is_slow=True),
    "minilm bundle": Contender(minilm_bundle, "minilm", is_slow=True),
    "sentence-transformers + LightGBM": Contender(sentence_transformers_lightgbm, is_slow=True),
    "semantic-router": Contender(semantic_router, "minilm", is_slow=True),
}
"""The contenders of the latency table."""

BATCH = "static bundle, route_batch"
"""The contender of the throughput table: what it is given as one item is a list of prompts."""


# ---- the process -----------------------------------------------------------------------------------


def serve(lines: TextIO, answers: TextIO) -> None:
    """Time a contender on each line of items; the first line says which one.

    First line: {"contender", "core" or null, "setting"}, answered by {"missing": null or what is not installed}.
    Every other line: a JSON list of items, answered by the seconds that each of them took.
    """
    job = json.loads(next(lines))
    if job["core"] is not None and hasattr(os, "sched_setaffinity"):  # macOS has none
        os.sched_setaffinity(0, {job["core"]})
    prepare = static_batch if job["contender"] == BATCH else CONTENDERS[job["contender"]].prepare
    try:
        decide = prepare(Setting(**job["setting"]))
    except ImportError as error:
        _answer(answers, {"missing": str(error)})
        return
    _answer(answers, {"missing": None})
    for line in lines:
        seconds = []
        for item in json.loads(line):
            start = time.perf_counter()
            decide(item)
            seconds.append(time.perf_counter() - start)
        _answer(answers, seconds)


def footprint(lines: TextIO, answers: TextIO) -> None:
    """Time and memory of a bundle in this fresh process; the only line is {"bundle", "prompts"}."""
    job = json.loads(next(lines))
    start = time.perf_counter()
    from router import Router

    import_seconds = time.perf_counter() - start
    memory = {"imported": _memory_mb()}
    start = time.perf_counter()
    router = Router.load(job["bundle"])
    load_seconds = time.perf_counter() - start
    memory["loaded"] = _memory_mb()
    for prompt in job["prompts"]:
        router.route(prompt)
    memory["routed"] = _memory_mb()
    _answer(answers, {"import_ms": import_seconds * 1e3, "load_ms": load_seconds * 1e3, "memory_mb": memory})


def _memory_mb() -> dict[str, float | None]:
    """Resident memory of this process now, and at most so far; macOS tells the latter only."""
    status = Path("/proc/self/status")
    if status.exists():
        kib = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return {name: int(kib[key].split()[0]) / 1024 for name, key in (("now", "VmRSS"), ("most", "VmHWM"))}
    import resource

    return {"now": None, "most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def _answer(answers: TextIO, document: object) -> None:
    answers.write(json.dumps(document) + "\n")
    answers.flush()


def main() -> int:
    """Keep stdout for the answers: whatever a contender's packages print goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    {"serve": serve, "footprint": footprint}[sys.argv[1]](sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
