"""Make the simulated outcome log beside this file: python data/make_sample_log.py [--seed 0].

No model was asked. Every prompt comes from a template (prompt_templates/), each outcome from a coin with bias

    P(tier answers correctly) = sigmoid(skill + affinity - difficulty + noise)

skill by tier, segment and language; affinity by tier and family; difficulty from what the prompt shows
(family, wording, steps, length) plus a part it hides; noise by tier and prompt. So a router can learn
something real, but not everything. Prices are those of tiers.toml.
Answers and the check `rubric` are drawn besides: right answers are the same, wrong ones often a popular wrong
one, and the check passes right answers more often than wrong ones.
The figures are invented: no real model is meant.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prompt_grammar import Family, Prompt, dress, read_families, write_core

HERE = Path(__file__).resolve().parent
START = pd.Timestamp("2026-01-05T06:00:00Z")
DAYS = 90

N_PROMPTS = 3000
REPHRASED = 0.06  # share of questions asked a second time with another opener and closer
UNOBSERVED = 0.03  # share of attempts that were never made
ALIASED = 0.12  # share of attempts logged under an alias, where the offer has one
HIDDEN_DIFFICULTY = 0.45  # standard deviation, logits: what no wording shows
TIER_NOISE = 0.30  # standard deviation, logits: per tier and prompt
LENGTH_NOISE = 0.35  # standard deviation of log output tokens
PER_DOUBLED_LENGTH = 0.12  # logits that each doubling of the prompt's length beyond 32 tokens adds
MAX_OUTPUT_TOKENS = 8192
POPULAR_WRONG = 0.55  # share of wrong answers that are the prompt's popular wrong one
SENSITIVITY, SPECIFICITY = 0.96, 0.80  # of the check `rubric`
RUBRIC_USD = 2e-6  # what one of these checks costs


@dataclass(frozen=True)
class Behaviour:
    """How a tier's model answers.

    skill: by segment, in logits; verbosity: by segment, a factor on output length.
    chinese, other: added to the skill for prompts that are not English; favourites: for single families.
    affinity: standard deviation of what is drawn for each family on top.
    """

    skill: Mapping[str, float]
    verbosity: Mapping[str, float]
    chinese: float
    other: float
    favourites: Mapping[str, float]
    tokens_per_second: float
    first_token_ms: float
    affinity: float = 0.25


BEHAVIOURS = {
    "edge": Behaviour(
        skill={"chat": 0.3, "arithmetic": -0.5, "code": 2.5, "extraction": 0.7, "reasoning": -0.3},
        verbosity={"chat": 0.8, "arithmetic": 0.8, "code": 0.9, "extraction": 0.9, "reasoning": 0.8},
        chinese=-0.8,
        other=-0.9,
        favourites={
            "sql": 1.5,
            "regex": 1.5,
            "explain-code": 1.0,
            "design-code": -1.5,
            "debug": 0.3,
            "one-step": 2.0,
            "zh-steps": 0.8,
            "everyday-advice": 1.2,
            "entities": 0.8,
            "compare": 2.2,
            "causes": 1.6,
            "zh-decide": 1.8,
        },
        tokens_per_second=45,
        first_token_ms=90,
    ),
    "distilled": Behaviour(
        skill={"chat": 2.0, "arithmetic": 1.8, "code": 1.0, "extraction": 2.2, "reasoning": 0.8},
        verbosity={"chat": 1.1, "arithmetic": 2.2, "code": 1.4, "extraction": 1.0, "reasoning": 5.0},
        chinese=0.9,
        other=-0.2,
        favourites={
            "one-step": 1.2,
            "running-total": 1.4,
            "percent": 1.0,
            "zh-logic": -0.6,
            "design-code": -0.6,
        },
        tokens_per_second=110,
        first_token_ms=260,
    ),
    "frontier": Behaviour(
        skill={"chat": 1.9, "arithmetic": 3.1, "code": 1.9, "extraction": 2.0, "reasoning": 2.8},
        verbosity={"chat": 1.0, "arithmetic": 0.9, "code": 1.0, "extraction": 0.9, "reasoning": 0.9},
        chinese=-0.3,
        other=0.2,
        favourites={"design-code": 0.6, "proof": 0.4},
        tokens_per_second=70,
        first_token_ms=420,
    ),
}


def main() -> None:
    """Write sample-log.parquet next to this file."""
    parser = argparse.ArgumentParser(description="Make the simulated outcome log data/sample-log.parquet.")
    parser.add_argument("--seed", type=int, default=0)
    log = make_log(parser.parse_args().seed)
    log.to_parquet(HERE / "sample-log.parquet", index=False, compression="zstd", compression_level=19)


def make_log(seed: int) -> pd.DataFrame:
    """The whole log, one row per attempt, in the order of time."""
    rng = np.random.default_rng(seed)
    tiers = tomllib.loads((HERE / "tiers.toml").read_text(encoding="utf-8"))["tiers"]
    prompts = write_prompts(read_families(HERE / "prompt_templates"), rng)
    asked_at = np.sort(rng.uniform(0, DAYS * 24 * 3600, len(prompts)))
    hidden = hidden_difficulty(prompts, rng)
    attempts = pd.concat([attempts_of_tier(tier, prompts, hidden, asked_at, rng) for tier in tiers])
    observed = attempts[rng.random(len(attempts)) >= UNOBSERVED]
    log = observed.sort_values(["timestamp", "request_id"], kind="stable").reset_index(drop=True)
    return with_answers(log, np.random.default_rng([seed, 1]))


def with_answers(log: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """The log with the answer of each attempt, as a short digest that stands for its normal form, and a check of it."""
    correct = log["correct"].to_numpy()
    own = [f"{number:08x}" for number in rng.integers(2**32, size=len(log))]
    is_popular = rng.random(len(log)) < POPULAR_WRONG
    answer = [
        digest(key, "right" if is_right else "popular" if popular else one)[:8]
        for key, is_right, popular, one in zip(log["question_key"], correct, is_popular, own, strict=True)
    ]
    passes = rng.random(len(log)) < np.where(correct, SENSITIVITY, 1 - SPECIFICITY)
    return log.assign(answer=answer, check_rubric=passes, check_rubric_usd=RUBRIC_USD)


def write_prompts(families: Sequence[Family], rng: np.random.Generator) -> list[Prompt]:
    """N_PROMPTS distinct prompts in random order; some repeat another's core in other dress."""
    share = np.array([family.share for family in families])
    texts: set[str] = set()
    cores: set[str] = set()
    prompts: list[Prompt] = []
    while len(prompts) < N_PROMPTS:
        family = families[rng.choice(len(families), p=share / share.sum())]
        core = write_core(family, rng)
        if core.text in cores:
            continue
        cores.add(core.text)
        for _ in range(1 + (rng.random() < REPHRASED)):
            prompt = dress(core, family, rng)
            if prompt.text not in texts and len(prompts) < N_PROMPTS:
                texts.add(prompt.text)
                prompts.append(prompt)
    return [prompts[index] for index in rng.permutation(len(prompts))]


def hidden_difficulty(prompts: Sequence[Prompt], rng: np.random.Generator) -> np.ndarray:
    """The part of difficulty that no wording shows, shape (n_prompts,): equal where the core is equal."""
    of_core: dict[str, float] = {}
    return np.array([of_core.setdefault(prompt.core, rng.normal(0, HIDDEN_DIFFICULTY)) for prompt in prompts])


def attempts_of_tier(
    tier: Mapping[str, Any],
    prompts: Sequence[Prompt],
    hidden: np.ndarray,
    asked_at: np.ndarray,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """One attempt of this tier at every prompt; hidden, asked_at (seconds after START): (n_prompts,)."""
    behaviour = BEHAVIOURS[tier["name"]]
    offers = [tier["offers"][index] for index in rng.integers(len(tier["offers"]), size=len(prompts))]
    correct = rng.random(len(prompts)) < success(behaviour, prompts, hidden, rng)
    input_tokens = np.array([count_tokens(prompt.text) for prompt in prompts])
    output_tokens = answer_lengths(behaviour, prompts, rng)
    price = np.array([prices(offer) for offer in offers])
    latency = behaviour.first_token_ms + 1000 * output_tokens / behaviour.tokens_per_second
    return pd.DataFrame(
        {
            "prompt": [prompt.text for prompt in prompts],
            "request_id": [digest(tier["name"], prompt.text) for prompt in prompts],
            "model": [logged_name(offer, rng) for offer in offers],
            "provider": [offer["provider"] for offer in offers],
            "dataset": [prompt.family.segment for prompt in prompts],
            "correct": correct,
            "input_tokens": input_tokens.astype(np.int32),
            "output_tokens": output_tokens.astype(np.int32),
            "cost_usd": np.round((input_tokens * price[:, 0] + output_tokens * price[:, 1]) / 1e6, 9),
            "latency_ms": np.round(latency * rng.lognormal(0, 0.2, len(prompts))).astype(np.int32),
            "timestamp": (START + pd.to_timedelta(np.round(asked_at), unit="s")).astype("datetime64[ms, UTC]"),
            "question_key": [digest(prompt.family.name, prompt.core) for prompt in prompts],
        }
    )


def success(
    behaviour: Behaviour, prompts: Sequence[Prompt], hidden: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """P(this tier answers correctly), shape (n_prompts,)."""
    affinity = {name: rng.normal(0, behaviour.affinity) for name in sorted({p.family.name for p in prompts})}
    skill = [skill_for(behaviour, prompt.family) + affinity[prompt.family.name] for prompt in prompts]
    shown = [prompt.difficulty + length_difficulty(prompt.text) for prompt in prompts]
    logits = np.array(skill) - np.array(shown) - hidden + rng.normal(0, TIER_NOISE, len(prompts))
    return 1 / (1 + np.exp(-logits))


def skill_for(behaviour: Behaviour, family: Family) -> float:
    """Skill in this family's segment, language and kind of work, in logits."""
    of_language = {"en": 0.0, "zh": behaviour.chinese}.get(family.language, behaviour.other)
    return behaviour.skill[family.segment] + of_language + behaviour.favourites.get(family.name, 0.0)


def length_difficulty(text: str) -> float:
    """Logits that a prompt's length adds."""
    return PER_DOUBLED_LENGTH * max(0.0, float(np.log2(count_tokens(text) / 32)))


def answer_lengths(behaviour: Behaviour, prompts: Sequence[Prompt], rng: np.random.Generator) -> np.ndarray:
    """Output tokens, shape (n_prompts,): log-normal around what family and wording ask for."""
    verbosity = np.array([behaviour.verbosity[prompt.family.segment] for prompt in prompts])
    asked_for = np.exp([prompt.log_output_tokens for prompt in prompts])
    lengths = verbosity * asked_for * rng.lognormal(0, LENGTH_NOISE, len(prompts))
    return np.clip(np.round(lengths), 1, MAX_OUTPUT_TOKENS)


def count_tokens(text: str) -> int:
    """Roughly what a tokenizer counts: 4 characters a token, 1.5 in Chinese and Japanese, 8 for the frame."""
    n_wide = len(re.findall(r"[\u3040-\u30ff\u3400-\u9fff\uff00-\uffef\u3000-\u303f]", text))
    return 8 + round(n_wide / 1.5 + (len(text) - n_wide) / 4)


def prices(offer: Mapping[str, Any]) -> tuple[float, float]:
    """USD per million tokens, input and output."""
    if "self_hosted" not in offer:
        return offer["usd_per_mtok_input"], offer["usd_per_mtok_output"]
    hourly = offer["self_hosted"]
    usd_per_hour = sum(hourly[f"{part}_usd_per_hour"] for part in ("electricity", "bandwidth", "hardware"))
    usd_per_mtok = usd_per_hour / (hourly["utilization"] * hourly["mtok_per_hour"])
    return usd_per_mtok, usd_per_mtok


def logged_name(offer: Mapping[str, Any], rng: np.random.Generator) -> str:
    """The offer's model name, or now and then one of its aliases."""
    aliases = offer.get("aliases", [])
    return aliases[rng.integers(len(aliases))] if aliases and rng.random() < ALIASED else offer["model"]


def digest(*parts: str) -> str:
    """16 hexadecimal digits that stand for these texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
