"""HostSource: batches from the host without a cache, pure in the step, repeating at most one block on resume."""

import jax
import numpy as np
import pytest

from jaxsae.data import HarvestConfig, HostSource, Source, stream
from jaxsae.data.activations import Runner
from jaxsae.errors import ConfigError, DataError
from jaxsae.testing.tiny_host import tiny_host

SITE = "blocks.1.hook_resid_post"
CONFIG = HarvestConfig(sites=(SITE,), context_size=16, batch_size=4, shuffle_tokens=512, dtype="float32")
TEXTS = [f"document {i} says " + "blah " * (i % 7) + chr(97 + i % 26) for i in range(40)]


@pytest.fixture(scope="module")
def host():
    return tiny_host()


def test_pure_in_the_step_in_any_order(host):
    source = HostSource(CONFIG, 50, host=host, corpus=TEXTS)
    assert isinstance(source, Source)
    assert source.steps_per_block == 9
    forward = [source.batch(i)["x"] for i in range(30)]
    for step in (29, 4, 4, 11, 0, 28):
        fresh = HostSource(CONFIG, 50, host=host, corpus=TEXTS)
        np.testing.assert_array_equal(fresh.batch(step)["x"], forward[step])
        np.testing.assert_array_equal(source.batch(step)["x"], forward[step])


def test_resume_runs_the_host_for_one_block_only(host, monkeypatch):
    runs, start = [], Runner.start
    monkeypatch.setattr(Runner, "start", lambda self, windows: runs.append(1) or start(self, windows))
    HostSource(CONFIG, 50, host=host, corpus=TEXTS).batch(40)
    assert len(runs) == CONFIG.batches_per_block


def test_rows_are_the_hosts_activations(host):
    x = HostSource(CONFIG, 64, host=host, corpus=["abcdefghij" * 50]).batch(0)["x"]
    text = [*host.tokenizer.encode("abcdefghij" * 50), 0] * 2
    windows = np.array(text[: len(text) // 16 * 16]).reshape(-1, 16)
    run = jax.jit(lambda p, t: host.model.run(p, t, taps=(SITE,), logits=False).taps)
    again = np.asarray(run(host.params, windows)[SITE]).reshape(-1, 32)
    distance = np.abs(x[:, None] - again[None]).max(-1).min(1)
    assert distance.max() < 2e-5


def test_the_corpus_is_begun_again(host):
    source = HostSource(CONFIG, 50, host=host, corpus=TEXTS[:3])
    assert len({source.batch(i)["x"].tobytes() for i in range(60)}) == 60


def test_process_count_does_not_change_the_global_batch(host):
    whole = HostSource(CONFIG, 50, host=host, corpus=TEXTS).batch(12)["x"]
    shares = [
        HostSource(CONFIG, 50, host=host, corpus=TEXTS, process_index=i, process_count=2).batch(12)["x"] for i in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate(shares), whole)


def test_several_sites_and_a_stream(host):
    config = HarvestConfig(
        sites=(SITE, "blocks.0.hook_mlp_out"), context_size=16, batch_size=4, shuffle_tokens=512, dtype="bfloat16"
    )
    source = HostSource(config, 50, host=host, corpus=TEXTS)
    with stream(source) as batches:
        for step, batch in (next(batches) for _ in range(12)):
            assert batch["sites"].shape == (50, 2, 32)
            np.testing.assert_array_equal(np.asarray(batch["sites"]), source.batch(step)["sites"])


def test_impossible_requests(host):
    with pytest.raises(ConfigError, match="raise shuffle_tokens to at least 1112"):
        HostSource(CONFIG, 1000, host=host, corpus=TEXTS)
    with pytest.raises(DataError, match="no token in any of the 2 documents"):
        HostSource(CONFIG, 50, host=host, corpus=["", ""]).batch(0)
    nan = jax.tree.map(lambda x: x * np.nan, host.params)
    with pytest.raises(DataError, match="hold NaN or infinity"):
        HostSource(CONFIG, 50, host=type(host)("nan", host.model, nan, host.tokenizer, "0"), corpus=TEXTS).batch(0)
