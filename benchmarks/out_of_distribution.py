"""Which prompts are taken for strange, and what drawing their estimates towards the means does: two tables.

    BROKER_REAL_LOGS=FOLDER .venv/bin/python benchmarks/out_of_distribution.py

FOLDER holds the public logs (mmlu_pro, zeroeval, routellm, llmrouter, routerarena) in the format of data/README.md.

1. Everything is learned on four fifths of one log's questions; shares of other prompts beyond the threshold: the fifth
   held out (false alarms), prompts of other logs (no question in common), and kinds written or drawn here. Beside the
   measure that ships, distance to the nearest landmark, stands leverage: the share of a prompt that the landmarks'
   kernel functions do not span (Nyström residual). Both thresholds are made alike, out of fold on training prompts.
2. Two models that two logs have in common: learned on one, judged on the strange prompts of the other. Brier score with
   estimates as they were, drawn towards the means, and of the means alone.
"""

import argparse
import base64
import os
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from training.encoders.embed import embed
from training.encoders.encoder import Encoder
from training.encoders.static import learn_static
from training.fit.cross_fit import N_FOLDS
from training.fit.estimator import SuccessEstimator
from training.fit.familiarity import FALSE_ALARM_RATE, Familiarity, fit_familiarity
from training.fit.kernel import KernelBasis
from training.fit.task import N_LANDMARKS
from training.log.split import fold_numbers, test_mask

TRAINED_ON = ("mmlu_pro", "zeroeval", "routellm")
LOGS = (*TRAINED_ON, "llmrouter", "routerarena")
SHARED_MODELS = ("Meta-Llama-3.1-8B-Instruct", "Meta-Llama-3.1-70B-Instruct")
SHARED_BY = ("mmlu_pro", "zeroeval")
N_PER_KIND = 400
N_DRAWN = 120
ROOT = Path(__file__).parent.parent

CHINESE = (
    "请证明根号二是无理数。一个水池有两个进水管，单独注满分别需要6小时和4小时，一起开需要多久？"
    "请用一句话解释什么是量子纠缠。我想退掉上周买的鞋子，应该怎么办？中国有多少个省级行政区？"
)
THAI = "จงพิสูจน์ว่ารากที่สองของสองเป็นจำนวนอตรรกยะ และอธิบายเหตุผลอย่างละเอียดทีละขั้นตอน ประเทศไทยมีกี่จังหวัด"
AMHARIC = "የሁለት ስኩዌር ሩት ኢ-ምክንያታዊ መሆኑን አረጋግጥ። ኢትዮጵያ ውስጥ ስንት ክልሎች አሉ? እባክዎ በዝርዝር ያብራሩ።"
SHORT = ["", " ", ".", "?", "\n", "ok", "hi", "Hello!", "1", "yes", "thanks"]


# ---- prompts ---------------------------------------------------------------------------------------


def written_kinds(rng: np.random.Generator) -> dict[str, list[str]]:
    """Prompts of kinds that no log here consists of."""

    def pieces(text: str, shortest: int, longest: int) -> list[str]:
        starts = rng.integers(0, len(text) - shortest, N_DRAWN)
        return [text[start : start + rng.integers(shortest, longest)] for start in starts]

    def word() -> str:
        return "".join(rng.choice(list(string.ascii_lowercase), rng.integers(3, 10)))

    def source(pattern: str) -> str:
        return "\n".join(path.read_text() for path in sorted(ROOT.glob(pattern)))

    return {
        "Chinese": pieces(CHINESE, 15, 60),
        "Thai": pieces(THAI, 15, 60),
        "Amharic": pieces(AMHARIC, 15, 60),
        "Python source": pieces(source("router/*.py"), 300, 900),
        "JavaScript source": pieces(source("examples/javascript/*.js"), 300, 900),
        "base64": [base64.b64encode(rng.bytes(int(rng.integers(60, 600)))).decode() for _ in range(N_DRAWN)],
        "random letters": [" ".join(word() for _ in range(rng.integers(10, 60))) for _ in range(N_DRAWN)],
        "a word or less": SHORT,
        "one word 2,000 times": [f"{word()} " * 2000 for _ in range(20)],
    }


def read_prompts(root: Path, name: str) -> pd.DataFrame:
    """prompt, question_key and prompt_id of a log."""
    frame = pd.read_parquet(root / name / "prompts.parquet").drop_duplicates("prompt_id")
    return frame.sort_values("prompt_id").reset_index(drop=True)


def vectors(encoder: Encoder, prompts: Sequence[str]) -> np.ndarray:
    """Embeddings, (n_prompts, n_dims)."""
    return embed(encoder, prompts, np.arange(len(prompts)).astype(str)).vectors


# ---- strangeness -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leverage:
    """The other measure: 1 - |whitened similarities|^2, and its threshold."""

    basis: KernelBasis
    threshold: float

    @classmethod
    def fit(cls, basis: KernelBasis, embedding: np.ndarray, folds: np.ndarray, seed: int) -> "Leverage":
        """The threshold as `fit_familiarity` makes its own."""
        residual = np.empty(len(embedding))
        for fold in np.unique(folds):
            others = KernelBasis.fit(embedding[folds != fold], len(basis.landmarks), seed)
            residual[folds == fold] = cls.residual(others, embedding[folds == fold])
        rank = int(np.ceil((1 - FALSE_ALARM_RATE) * (len(residual) + 1)))
        return cls(basis, float(np.sort(residual)[rank - 1]))

    @staticmethod
    def residual(basis: KernelBasis, embedding: np.ndarray) -> np.ndarray:
        """Of each prompt, (n_prompts,)."""
        return 1 - (basis.features(embedding) ** 2).sum(axis=1)

    def is_strange(self, embedding: np.ndarray) -> np.ndarray:
        """Beyond the threshold, bool (n_prompts,)."""
        return self.residual(self.basis, embedding) > self.threshold


def flagged(root: Path, name: str, seed: int) -> pd.DataFrame:
    """Per kind of prompt: how many, share beyond either threshold, median familiarity."""
    rng = np.random.default_rng(seed)
    log = read_prompts(root, name)
    in_test = test_mask(log.question_key.to_numpy(), 0.2, seed)
    encoder = learn_static(log.prompt[~in_test].tolist(), seed=seed)
    embedding = vectors(encoder, log.prompt[~in_test].tolist())
    folds = fold_numbers(log.question_key[~in_test].to_numpy(), N_FOLDS, seed)
    basis = KernelBasis.fit(embedding, N_LANDMARKS, seed)
    familiarity, _ = fit_familiarity(basis, embedding, folds, np.full((len(embedding), 1), 0.5), seed)
    leverage = Leverage.fit(basis, embedding, folds, seed)

    kinds = {f"{name}, held out": log.prompt[in_test].tolist()}
    known = set(log.question_key)
    for other in LOGS:
        if other != name:
            frame = read_prompts(root, other)
            prompts = frame.prompt[~frame.question_key.isin(known)].tolist()
            kinds[other] = [prompts[row] for row in rng.permutation(len(prompts))[:N_PER_KIND]]
    train = log.prompt[~in_test].tolist()
    joined = ["\n\n".join(train[row] for row in rng.integers(0, len(train), 25)) for _ in range(60)]
    kinds |= {"25 training prompts in one": joined, **written_kinds(rng)}
    rows = []
    for kind, prompts in kinds.items():
        found = vectors(encoder, prompts)
        of = familiarity.of(found)
        share, by_leverage = (of < 1).mean(), leverage.is_strange(found).mean()
        rows.append((kind.replace(name, "same log"), len(prompts), share, by_leverage, np.median(of)))
    return pd.DataFrame(rows, columns=["kind", "n", "strange", "by leverage", "familiarity"]).set_index("kind")


# ---- what shrinking does ---------------------------------------------------------------------------


def shared_outcomes(root: Path, name: str) -> tuple[pd.DataFrame, np.ndarray]:
    """The prompts of a log that both shared models answered, and their outcomes, (n_prompts, 2)."""
    attempts = pd.read_parquet(root / name / "outcomes.parquet", columns=["prompt_id", "model", "correct"])
    attempts = attempts[attempts.model.isin(SHARED_MODELS)]
    table = attempts.pivot_table(index="prompt_id", columns="model", values="correct")[list(SHARED_MODELS)].dropna()
    log = read_prompts(root, name)
    log = log[log.prompt_id.isin(table.index)].reset_index(drop=True)
    return log, table.loc[log.prompt_id].to_numpy()


def transferred(root: Path, source: str, target: str, seed: int) -> list[tuple[str, int, float, float, float]]:
    """Per group of the target's prompts: how many, and three Brier scores."""
    log, correct = shared_outcomes(root, source)
    encoder = learn_static(log.prompt.tolist(), seed=seed)
    estimator = SuccessEstimator(seed=seed).fit(
        vectors(encoder, log.prompt.tolist()), correct, groups=log.question_key.to_numpy()
    )
    others, outcomes = shared_outcomes(root, target)
    unseen = ~others.question_key.isin(set(log.question_key)).to_numpy()
    found, outcomes = vectors(encoder, others.prompt[unseen].tolist()), outcomes[unseen]
    whole: Familiarity = estimator.model_.familiarity
    of = whole.of(found)
    always_familiar = replace(estimator.model_, familiarity=replace(whole, threshold=np.finfo(float).tiny))
    before, after = always_familiar.predict(found), estimator.model_.predict(found)

    def brier(estimate: np.ndarray, rows: np.ndarray) -> float:
        return float(((np.broadcast_to(estimate, outcomes.shape) - outcomes)[rows] ** 2).mean())

    groups = {"strange": of < 1, "the stranger half of these": of < np.median(of[of < 1]), "familiar": of == 1}
    return [
        (group, int(rows.sum()), brier(before, rows), brier(after, rows), brier(whole.means, rows))
        for group, rows in groups.items()
    ]


# ---- printing --------------------------------------------------------------------------------------


def shares_table(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Kinds down, logs across: strange (by leverage), median familiarity."""
    kinds = list(dict.fromkeys(kind for table in tables.values() for kind in table.index))
    head = " | ".join(f"{name}: strange | by leverage | familiarity" for name in tables)
    lines = [f"| prompts | {head} |", "|---" * (1 + 3 * len(tables)) + "|"]
    for kind in kinds:
        cells = []
        for table in tables.values():
            row = table.loc[kind] if kind in table.index else None
            cells += ["", "", ""] if row is None else [
                f"{row['strange']:.1%}", f"{row['by leverage']:.1%}", f"{row['familiarity']:.2f}"
            ]  # fmt: skip
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Which prompts are strange, and what that does to estimates.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = os.environ.get("BROKER_REAL_LOGS")
    if not root:
        sys.stderr.write("BROKER_REAL_LOGS is not set; expected the folder of the public outcome logs\n")
        return 2
    tables = {name: flagged(Path(root), name, options.seed) for name in tqdm(TRAINED_ON, desc="logs", unit="log")}
    print("\n".join(shares_table(tables)))
    print("\n| learned on, judged on | prompts | n | estimates as they were | drawn towards means | means alone |")
    print("|---|---|---|---|---|---|")
    for source, target in (SHARED_BY, SHARED_BY[::-1]):
        for group, n, *scores in transferred(Path(root), source, target, options.seed):
            figures = " | ".join(f"{score:.4f}" for score in scores)
            print(f"| {source}, {target} | {group} | {n} | {figures} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
