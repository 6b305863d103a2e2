"""The whole line with a transformer encoder: needs torch, which `make test-encoders` installs."""

from importlib.util import find_spec

import pandas as pd
import pytest

from router import Router
from router.golden import check_golden
from training import TrainingConfig, train
from training.encoders.embed import embed
from training.encoders.make import make_encoder

# Not imported here: every process that collects tests would wait for it.
pytestmark = pytest.mark.skipif(
    find_spec("torch") is None or find_spec("sentence_transformers") is None,
    reason="not installed: make test-encoders installs torch and sentence-transformers",
)


def test_minilm_trains_exports_and_routes(sample_log, sample_tiers, tmp_path):
    log = pd.read_parquet(sample_log)
    few = log[log["prompt"].isin(sorted(log["prompt"].unique())[:120])]
    config = TrainingConfig(encoder="minilm", cache=tmp_path / "cache")
    result = train(few, sample_tiers, tmp_path / "minilm", config, tracking_uri="none")
    assert result.manifest.encoder.name == "minilm"
    assert result.n_embedded == 120
    assert result.parity.success < 1e-4
    assert check_golden(result.bundle).passed
    router = Router.load(result.bundle)
    prompts = ["Hello!", "", "word " * 2000]
    batch = router.route_batch(prompts)
    for prompt, decision in zip(prompts, batch, strict=True):
        assert decision.success == pytest.approx(router.route(prompt).success, abs=1e-5)

    encoder, _ = make_encoder(config, result.log, config.cache)
    again = embed(encoder, result.log.prompts, result.log.prompt_ids, config.cache)
    assert again.n_computed == 0, "another run finds every embedding in the cache"
