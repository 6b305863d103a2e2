"""Laws of the embedding cache and of the cache of encoders: never another result, never the same work twice."""

import hashlib
import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from router.bundle.engine import padded
from training.encoders.cache import EncoderCache, bottom_k, overlap
from training.encoders.embed import embed
from training.encoders.static import StaticRecipe, learn_static

RECIPE = StaticRecipe(vocab_size=320, n_lsa=4, n_distilled=4, max_tokens=64)
WORDS = "sum proof list river stone why sort prime paint clock tax verb orbit salt 数 code".split()


def some_prompts(n, seed=0):
    """n distinct prompts."""
    words = random.Random(seed)
    return [f"{seed}-{number} " + " ".join(words.choices(WORDS, k=words.randint(1, 40))) for number in range(n)]


def ids_of(prompts):
    return np.array([hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in prompts])


PROMPTS = some_prompts(300)


@pytest.fixture(scope="module")
def encoder():
    return learn_static(PROMPTS, RECIPE)


def run(encoder, prompts, cache=None):
    return embed(encoder, prompts, ids_of(prompts), cache)


def shards(cache):
    return sorted((cache / "embeddings").rglob("*.parquet"))


def test_a_vector_depends_on_its_prompt_alone(encoder):
    whole = run(encoder, PROMPTS)
    order = np.random.default_rng(0).permutation(len(PROMPTS))
    np.testing.assert_allclose(run(encoder, [PROMPTS[i] for i in order]).vectors, whole.vectors[order], atol=1e-6)
    for row in (0, 7):
        alone = run(encoder, [PROMPTS[row]])
        np.testing.assert_allclose(alone.vectors[0], whole.vectors[row], atol=1e-6)
        assert alone.n_tokens[0] == whole.n_tokens[row]


def test_padding_masks_what_it_fills():
    feeds = padded([[5, 6, 7], [], [8]])
    np.testing.assert_array_equal(feeds["input_ids"], [[5, 6, 7], [0, 0, 0], [8, 0, 0]])
    np.testing.assert_array_equal(feeds["attention_mask"], [[1, 1, 1], [0, 0, 0], [1, 0, 0]])
    assert feeds["input_ids"].dtype == feeds["attention_mask"].dtype == np.int64


def test_only_new_prompts_are_embedded(encoder, tmp_path):
    first = run(encoder, PROMPTS, tmp_path)
    assert first.n_computed == len(PROMPTS)
    grown = [*some_prompts(3, seed=1), *PROMPTS]
    second = run(encoder, grown, tmp_path)
    assert second.n_computed == 3
    np.testing.assert_array_equal(second.vectors[3:], first.vectors)
    np.testing.assert_array_equal(second.n_tokens[3:], first.n_tokens)
    third = run(encoder, grown[::-1], tmp_path)
    assert third.n_computed == 0
    np.testing.assert_array_equal(third.vectors, second.vectors[::-1])


def test_another_encoder_takes_nothing_from_the_cache(encoder, tmp_path):
    run(encoder, PROMPTS, tmp_path)
    other = learn_static(PROMPTS, RECIPE, seed=1)
    assert other.digest != encoder.digest
    assert run(other, PROMPTS, tmp_path).n_computed == len(PROMPTS)


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 8]) + content[middle + 8 :]


def without_vectors(content):
    sink = pa.BufferOutputStream()
    pq.write_table(pq.read_table(pa.BufferReader(content)).drop_columns(["vector"]), sink)
    return sink.getvalue().to_pybytes()


DAMAGE = {"empty": lambda _: b"", "cut": lambda content: content[: len(content) // 2], "flipped": flip}


@pytest.mark.parametrize("damage", [*DAMAGE.values(), without_vectors], ids=[*DAMAGE, "column missing"])
def test_damaged_cache_entries_are_computed_again(encoder, tmp_path, damage):
    sound = run(encoder, PROMPTS[:200], tmp_path)
    [shard] = shards(tmp_path)
    run(encoder, PROMPTS, tmp_path)
    shard.write_bytes(damage(shard.read_bytes()))
    again = run(encoder, PROMPTS, tmp_path)
    assert again.n_computed == 200
    np.testing.assert_allclose(again.vectors[:200], sound.vectors, atol=1e-6)
    assert run(encoder, PROMPTS, tmp_path).n_computed == 0


def shelved(folder, prompts, recipe=RECIPE, seed=0):
    return EncoderCache(folder).static(prompts, ids_of(prompts), recipe, seed)


def test_a_log_that_has_grown_a_little_keeps_its_encoder(tmp_path):
    first, was_there = shelved(tmp_path, PROMPTS)
    assert not was_there
    second, was_there = shelved(tmp_path, [*PROMPTS, *some_prompts(3, seed=1)])
    assert was_there and second.digest == first.digest
    assert (second.max_chars, second.max_tokens, second.name) == (first.max_chars, first.max_tokens, first.name)
    np.testing.assert_array_equal(run(second, PROMPTS[:9]).vectors, run(first, PROMPTS[:9]).vectors)


def test_another_log_recipe_or_seed_gets_its_own_encoder(tmp_path):
    digests = {shelved(tmp_path, PROMPTS)[0].digest}
    for prompts, recipe, seed in (
        (some_prompts(300, seed=2), RECIPE, 0),
        (PROMPTS, StaticRecipe(vocab_size=320, n_lsa=5, n_distilled=4, max_tokens=64), 0),
        (PROMPTS, RECIPE, 1),
    ):
        encoder, was_there = shelved(tmp_path, prompts, recipe, seed)
        assert not was_there and encoder.digest not in digests
        digests.add(encoder.digest)


def altered_number(content):
    facts = json.loads(content)
    return json.dumps({**facts, "max_chars": facts["max_chars"] + 1}).encode()


@pytest.fixture(scope="module")
def sound_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    shelved(folder, PROMPTS)
    return folder


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tokenizer.json", flip),
        ("encoder.onnx", DAMAGE["cut"]),
        ("encoder.onnx", flip),
        ("facts.json", DAMAGE["empty"]),
        ("facts.json", altered_number),
    ],
)
def test_a_damaged_encoder_is_learned_again_and_replaced(encoder, sound_cache, tmp_path, name, damage):
    shutil.copytree(sound_cache, tmp_path, dirs_exist_ok=True)
    [entry] = tmp_path.iterdir()
    (entry / name).write_bytes(damage((entry / name).read_bytes()))
    again, was_there = shelved(tmp_path, PROMPTS)
    assert not was_there and again.digest == encoder.digest
    assert shelved(tmp_path, PROMPTS)[1]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_sketches_estimate_how_much_two_logs_share(share):
    n = 20_000
    ids = ids_of([str(number) for number in range(2 * n)])
    first, second = ids[:n], ids[n - int(share * n) : 2 * n - int(share * n)]
    exact = len(np.intersect1d(first, second)) / len(np.union1d(first, second))
    assert overlap(bottom_k(first), bottom_k(second)) == pytest.approx(exact, abs=0.06)
