"""Prompts from templates: a small grammar with slots, one file per language in prompt_templates/.

What a template shows is what makes the prompt hard or its answer long: every option drawn may add to both.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_SLOT = re.compile(
    r"\{(?:(?P<low>\d+(?:\.\d+)?)\.\.(?P<high>\d+(?:\.\d+)?)(?:/(?P<step>\d+(?:\.\d+)?))?"
    r"|(?P<slot>[a-z_]+)(?:(?P<joiner>[*,|])(?P<least>\d+)-(?P<most>\d+))?(?:=(?P<key>[A-Z]))?)\}"
)
_UNSPACED = {"zh", "ja"}


@dataclass(frozen=True)
class Option:
    """One text a slot can become, and what it adds to difficulty (logits) and log output length."""

    text: str
    harder: float = 0.0
    longer: float = 0.0


@dataclass(frozen=True)
class Family:
    """Prompts that ask for the same kind of work in the same language.

    difficulty: of a prompt without additions, in logits; output_tokens: of an answer to it, before verbosity.
    share: of all prompts.
    """

    name: str
    language: str
    segment: str
    share: float
    difficulty: float
    output_tokens: float
    phrasings: tuple[Option, ...]
    slots: Mapping[str, tuple[Option, ...]]
    openers: tuple[Option, ...]
    closers: tuple[Option, ...]


@dataclass(frozen=True)
class Prompt:
    """A prompt, with what the simulation knows of it. core: without opener and closer."""

    text: str
    core: str
    family: Family
    difficulty: float
    log_output_tokens: float


def read_families(folder: Path) -> list[Family]:
    """All families of the *.toml in folder, in the order of file names; the stem is the language."""
    return [family for path in sorted(folder.glob("*.toml")) for family in _families_of(path)]


def write_core(family: Family, rng: np.random.Generator) -> Option:
    """One core of this family, with all that its options add."""
    draft = _Draft(family, rng)
    text = draft.expand(draft.choose("phrasings", family.phrasings))
    return Option(re.sub(r"(?<=\S) {2,}(?=\S)", " ", text).strip(), draft.harder, draft.longer)


def dress(core: Option, family: Family, rng: np.random.Generator) -> Prompt:
    """The core between an opener and a closer."""
    opener, closer = (options[rng.integers(len(options))] for options in (family.openers, family.closers))
    remark = _Draft(family, rng).expand(closer.text)
    ending = "\n\n" + remark.strip() if "\n" in core.text and remark else remark
    opened = opener.text + core.text
    added = (core, opener, closer)
    return Prompt(
        text=opened[0].upper() + opened[1:] + ending,
        core=core.text,
        family=family,
        difficulty=family.difficulty + sum(option.harder for option in added),
        log_output_tokens=float(np.log(family.output_tokens)) + sum(option.longer for option in added),
    )


@dataclass
class _Draft:
    """One prompt being written: no option is drawn twice while others are left."""

    family: Family
    rng: np.random.Generator
    harder: float = 0.0
    longer: float = 0.0
    used: set[tuple[str, str]] = field(default_factory=set)
    named: dict[str, str] = field(default_factory=dict)

    def choose(self, slot: str, options: Sequence[Option]) -> str:
        fresh = [option for option in options if (slot, option.text) not in self.used] or options
        option = fresh[self.rng.integers(len(fresh))]
        self.used.add((slot, option.text))
        self.harder += option.harder
        self.longer += option.longer
        return option.text

    def expand(self, text: str) -> str:
        return _SLOT.sub(self._fill, text)

    def _fill(self, match: re.Match[str]) -> str:
        if match["low"]:
            return self._number(match["low"], match["high"], match["step"] or "1")
        if match["key"]:
            if match["key"] not in self.named:
                self.named[match["key"]] = self._draw(match["slot"])
            return self.named[match["key"]]
        drawn = [self._draw(match["slot"]) for _ in range(self._times(match))]
        return self._joiner(match["joiner"]).join(drawn)

    def _draw(self, slot: str) -> str:
        if slot not in self.family.slots:
            known = ", ".join(sorted(self.family.slots))
            raise KeyError(f"{self.family.name}: found no slot {slot!r}; expected one of {known}")
        return self.expand(self.choose(slot, self.family.slots[slot]))

    def _times(self, match: re.Match[str]) -> int:
        return int(self.rng.integers(int(match["least"]), int(match["most"]) + 1)) if match["joiner"] else 1

    def _joiner(self, sign: str | None) -> str:
        space = "" if self.family.language in _UNSPACED else " "
        return {"*": space, ",": ", ", "|": "\n"}.get(sign or "", "")

    def _number(self, low: str, high: str, step: str) -> str:
        steps = int(round((float(high) - float(low)) / float(step)))
        return f"{float(low) + float(step) * int(self.rng.integers(steps + 1)):.10g}"


def _families_of(path: Path) -> Iterator[Family]:
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    shared = document.get("slots", {})
    total = sum(entry.get("share", 1.0) for entry in document["families"])
    for entry in document["families"]:
        yield Family(
            name=entry["name"],
            language=path.stem,
            segment=entry["segment"],
            share=document["share"] * entry.get("share", 1.0) / total,
            difficulty=entry["difficulty"],
            output_tokens=entry["output_tokens"],
            phrasings=_options(entry["phrasings"]),
            slots={name: _options(listed) for name, listed in {**shared, **entry.get("slots", {})}.items()},
            openers=_options(document["openers"]),
            closers=_options(entry.get("closers") or document.get("closers", {}).get(entry["segment"], [""])),
        )


def _options(listed: Sequence[Any] | Mapping[str, Any]) -> tuple[Option, ...]:
    if isinstance(listed, Mapping):
        harder, longer = listed.get("harder", 0.0), listed.get("longer", 0.0)
        return tuple(Option(text, harder, longer) for text in listed["options"])
    return tuple(Option(**entry) if isinstance(entry, Mapping) else Option(entry) for entry in listed)
