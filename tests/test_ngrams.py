"""Character n-grams give tokens of Chinese, Japanese and Korean vectors that say what is inside them."""

import numpy as np

from training.encoders import static
from training.encoders.embed import embed
from training.encoders.ngrams import cjk_ngrams
from training.encoders.static import StaticRecipe, learn_static

RECIPE = StaticRecipe(vocab_size=600, n_lsa=4, n_distilled=8)
LAW = ["请问劳动合同违约金如何计算", "劳动合同可以口头订立吗", "合同违约金过高怎么办", "口头合同有效吗"] * 10
FOOD = ["红烧牛肉面怎么做才好吃", "牛肉面的汤怎么做", "清蒸鱼怎么做才嫩", "鱼汤怎么做才白"] * 10


def test_ngrams_are_those_of_each_run_of_characters():
    counts = cjk_ngrams(["合同a合同", "abc", "ラーメン", ""])
    assert counts.shape[0] == 4
    np.testing.assert_array_equal(counts.sum(axis=1).ravel(), [[6, 0, 9, 0]])
    assert counts[0].nnz == 3  # each of the three twice


def test_texts_without_such_characters_have_no_ngram_and_keep_the_vectors_that_they_had(monkeypatch):
    assert cjk_ngrams(["plain English", "naïve café", "Привет", "1 + 1 = 2"]).nnz == 0
    prompts = [f"Add {i} and {i + 1}, then explain the result in a sentence." for i in range(60)]
    usual = learn_static(prompts, RECIPE)
    monkeypatch.setattr(static, "cjk_ngrams", lambda texts: cjk_ngrams([""] * len(texts)))
    assert learn_static(prompts, RECIPE).digest == usual.digest


def test_prompts_that_share_characters_are_closer_than_others():
    prompts = [f"{text}？{number}" for number, text in enumerate(LAW + FOOD)]
    encoder = learn_static(prompts, RECIPE)
    vectors = embed(encoder, prompts, np.arange(len(prompts)).astype(str)).vectors[:, 4:12]  # the second part
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    centres = vectors[: len(LAW)].mean(axis=0), vectors[len(LAW) :].mean(axis=0)
    nearer = vectors @ (centres[0] - centres[1])
    assert (nearer[: len(LAW)] > nearer[len(LAW) :].max()).all()


def test_english_among_chinese_keeps_its_distilled_part():
    """In a mixed log, English prompts of two kinds stay apart, and Chinese ones are far from both."""
    english = [f"Bake bread with {i} g of flour and yeast" for i in range(20)]
    english += [f"Prove the theorem for all integers n > {i}" for i in range(20)]
    prompts = [*LAW, *english]
    prompts = [f"{text} {number}" for number, text in enumerate(prompts)]
    vectors = embed(learn_static(prompts, RECIPE), prompts, np.arange(len(prompts)).astype(str)).vectors[:, 4:12]
    chinese, bread, proofs = (part.mean(axis=0) for part in np.split(vectors, [40, 60]))
    assert bread @ proofs < 0.9 * min(bread @ bread, proofs @ proofs)
    assert max(chinese @ bread, chinese @ proofs) < 0.5 * chinese @ chinese
