"""Harvest: rows equal the host's activations, a kill changes nothing, and what is left out is counted."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from jaxsae.config import from_dict, to_dict
from jaxsae.data import Corpus, HarvestConfig, harvest, open_cache
from jaxsae.data.activations import DropPolicy, Runner
from jaxsae.data.store import Folder
from jaxsae.errors import ConfigError, DataError, HostError
from jaxsae.hosts import HostMesh
from jaxsae.testing.tiny_host import tiny_host

SITE = "blocks.1.hook_resid_post"
CONFIG = HarvestConfig(
    sites=(SITE,), context_size=16, batch_size=4, shuffle_tokens=256, heldout_fraction=0.2, dtype="float32"
)
TEXTS = [f"document {i} says " + "blah " * (i % 7) + chr(97 + i % 26) for i in range(40)]


@pytest.fixture(scope="module")
def host():
    return tiny_host()


@pytest.fixture(scope="module")
def cache(host, tmp_path_factory):
    path = tmp_path_factory.mktemp("harvest") / "c"
    harvest(CONFIG, path, host=host, corpus=TEXTS)
    return open_cache(path)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(pathlib.Path(folder).rglob("*")) if p.is_file()}


def activations(host, tokens):
    return np.asarray(
        jax.jit(lambda p, t: host.model.run(p, t, taps=(SITE,), logits=False).taps)(host.params, tokens)[SITE]
    )


def change(**changes):
    return dataclasses.replace(CONFIG, **changes)


# ------------------------------------------------------------------------------------------------- what is stored
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_rows_are_the_hosts_activations(host, cache, split):
    """Every window run again, by itself, gives the rows that are stored for it."""
    s = cache.split(split)
    rows = np.arange(s.rows)
    context, x = s.context(rows), s.read(0, s.rows)
    tokens = s.read_windows(0, s.windows)
    again = activations(host, tokens)
    where = {w.tobytes(): i for i, w in enumerate(tokens)}
    window = [where[t.tobytes()] for t in context.tokens]
    np.testing.assert_allclose(x, again[window, context.offset], atol=2e-5)


def test_every_row_is_traced_to_its_text(host, cache):
    for split in ("train", "heldout"):
        s = cache.split(split)
        origin, context = s.origin(np.arange(s.rows)), s.context(np.arange(s.rows))
        for doc, position, tokens, at in zip(*origin, *context, strict=True):
            text = [*host.tokenizer.encode(TEXTS[doc]), host.tokenizer.eos_id]
            assert tokens[at] == text[position] == cache.document(int(doc))[position]


def test_every_token_is_a_row_or_counted(host, cache):
    total = sum(len(host.tokenizer.encode(t)) + 1 for t in TEXTS)
    rows = sum(cache.split(s).rows for s in ("train", "heldout"))
    assert rows + sum(cache.dropped.values()) == total
    assert cache.dropped["position_0"] == sum(cache.split(s).windows for s in ("train", "heldout"))
    assert 0 < cache.dropped["special_tokens"] <= len(TEXTS)


def test_no_document_is_in_both_splits(cache):
    docs = [set(cache.split(s).origin(np.arange(cache.split(s).rows)).doc.tolist()) for s in ("train", "heldout")]
    assert not docs[0] & docs[1]
    assert len(docs[1]) == 8  # a fifth of forty


def test_position_0_is_left_out(cache):
    assert (cache.split("train").context(np.arange(cache.split("train").rows)).offset > 0).all()


def test_the_manifest_says_how(host, cache):
    m = cache.manifest
    assert host.matches(m.host)
    assert m.text["context_size"] == 16
    assert m.text["bos"] == "none"
    assert m.text["chat_template"] is None
    assert m.text["drop_special_tokens"] is True
    assert m.corpus["documents"] == 40


def test_several_sites_in_one_pass(host, tmp_path):
    sites = (SITE, "blocks.0.ln2.hook_normalized", "blocks.2.hook_mlp_out")
    harvest(change(sites=sites), tmp_path / "all", host=host, corpus=TEXTS)
    harvest(change(sites=sites[1:2], outlier_factor=None), tmp_path / "one", host=host, corpus=TEXTS)
    both, one = (open_cache(tmp_path / n).split("train") for n in ("all", "one"))
    assert both.rows == one.rows
    np.testing.assert_allclose(both.read(0, 200, sites[1]), one.read(0, 200), atol=2e-5)


@pytest.mark.parametrize(
    "changes", [{"packing": "separate"}, {"eos": False}, {"chat_template": "<|endoftext|>: {text}"}]
)
def test_policies_give_traceable_rows(host, tmp_path, changes):
    config = change(**changes)
    harvest(config, tmp_path / "c", host=host, corpus=TEXTS)
    cache = open_cache(tmp_path / "c")
    for i in range(len(TEXTS)):
        assert cache.document(i).tolist() == config.text.encode(host.tokenizer, TEXTS[i])


@pytest.mark.parametrize("count", [2, 3])
def test_parts_together_hold_what_one_holds(host, tmp_path, cache, count):
    for part in reversed(range(count)):
        harvest(change(part=part, parts=count), tmp_path / "c", host=host, corpus=TEXTS)
    parts = open_cache(tmp_path / "c")
    assert set(parts.documents) == set(cache.documents)
    for split in ("train", "heldout"):
        docs = [set(c.split(split).origin(np.arange(c.split(split).rows)).doc.tolist()) for c in (parts, cache)]
        assert docs[0] == docs[1]


def test_a_batch_may_be_spread_over_devices(host, tmp_path, cache):
    harvest(CONFIG, tmp_path / "c", host=host, corpus=TEXTS, devices=jax.devices()[:4])
    spread = open_cache(tmp_path / "c").split("train")
    np.testing.assert_allclose(spread.read(0, spread.rows), cache.split("train").read(0, spread.rows), atol=2e-5)


@pytest.mark.parametrize("mesh", [HostMesh(data=2, latent=4), HostMesh(latent=8)], ids=str)
def test_a_host_cut_over_devices_writes_the_same_rows(host, tmp_path, cache, mesh):
    harvest(change(mesh=mesh), tmp_path / "c", host=host, corpus=TEXTS)
    spread, alone = (c.split("train") for c in (open_cache(tmp_path / "c"), cache))
    rows = np.arange(alone.rows)
    assert spread.rows == alone.rows
    np.testing.assert_array_equal(spread.origin(rows).position, alone.origin(rows).position)
    np.testing.assert_allclose(spread.read(0, alone.rows), alone.read(0, alone.rows), atol=2e-5)


def test_a_cache_is_gone_on_with_on_another_mesh(host, tmp_path, cache):
    """The mesh is no part of what a cache is: every row is there, and none twice."""
    harvest(change(tokens=400), tmp_path / "c", host=host, corpus=TEXTS)
    harvest(change(mesh=HostMesh(data=4, latent=2)), tmp_path / "c", host=host, corpus=TEXTS)
    origins = (s.origin(np.arange(s.rows)) for s in (c.split("train") for c in (open_cache(tmp_path / "c"), cache)))
    both, alone = (sorted(zip(o.doc.tolist(), o.position.tolist(), strict=True)) for o in origins)
    assert both == alone


# ------------------------------------------------------------------------------------------------- left out
def test_outliers_are_dropped_by_the_stated_rule():
    tokens, docs = np.full((2, 8), 5), np.zeros((2, 8), int)
    norm = np.ones((2, 8))
    norm[0, 0], norm[1, 3], norm[1, 4] = 1000, 10.5, 9.5
    tokens[0, 1] = 0
    keep, dropped = DropPolicy(outlier_factor=10).keep(tokens, docs, {"a": norm}, {0})
    assert dropped == {"position_0": 2, "special_tokens": 1, "outliers": 1}
    assert not keep[1, 3]
    assert keep[1, 4]
    assert keep.sum() == 16 - 4
    keep, dropped = DropPolicy(False, False, None).keep(tokens, docs, {"a": norm}, {0})
    assert keep.all()
    assert not any(dropped.values())


def test_an_outlier_at_one_site_drops_the_row_at_all():
    norms = {"a": np.ones((1, 8)), "b": np.ones((1, 8))}
    norms["b"][0, 5] = 50
    keep, _ = DropPolicy(False, False, 10.0).keep(np.ones((1, 8), int), np.zeros((1, 8), int), norms, ())
    assert np.flatnonzero(~keep[0]).tolist() == [5]


def test_padding_is_neither_row_nor_dropped():
    docs = np.array([[0, 0, -1, -1]])
    keep, dropped = DropPolicy().keep(np.zeros((1, 4), int), docs, {"a": np.ones((1, 4))}, {0})
    assert keep.sum() == 0
    assert dropped == {"position_0": 1, "special_tokens": 1, "outliers": 0}


# ------------------------------------------------------------------------------------------------- going on
KILLED = """
    import os, signal, sys
    os.environ.update(JAX_PLATFORMS="cpu")
    import jax
    jax.config.update("jax_num_cpu_devices", 8)
    from jaxsae.config import from_dict
    from jaxsae.data import harvest, writer
    from jaxsae.testing.tiny_host import tiny_host
    import json
    config, out, texts, moment = from_dict(json.loads(sys.argv[1])), sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
    die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    if moment == "commit":
        save, count = writer.CacheWriter._save, [0]
        def saved(self, progress):
            count[0] += 1
            save(self, progress) if count[0] < 3 else die()  # the third block's rows are written, and not yet there
        writer.CacheWriter._save = saved
        say = None
    else:
        say = lambda tokens, rows: die() if tokens >= 1000 else None  # inside a block
    harvest(config, out, host=tiny_host(), corpus=texts, say=say)
"""


def test_killed_at_any_moment_and_run_again_is_byte_identical(host, tmp_path):
    harvest(CONFIG, tmp_path / "straight", host=host, corpus=TEXTS)
    rows = []
    for moment in ("commit", "batch"):  # the second kill comes while the first one's block is made again
        args = [json.dumps(to_dict(CONFIG)), str(tmp_path / "c"), json.dumps(TEXTS), moment]
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), *args], capture_output=True, timeout=120)
        assert done.returncode == -9, done.stderr.decode()
        rows.append(open_cache(tmp_path / "c").split("train").rows)
    assert 0 < rows[0] <= rows[1] < open_cache(tmp_path / "straight").split("train").rows
    harvest(CONFIG, tmp_path / "c", host=host, corpus=TEXTS)
    assert files(tmp_path / "c") == files(tmp_path / "straight")


@pytest.mark.parametrize("packing", ["packed", "separate"])
def test_interrupted_after_every_batch_is_byte_identical(host, tmp_path, packing):
    config = change(packing=packing, tokens=950)
    harvest(config, tmp_path / "straight", host=host, corpus=TEXTS)

    def stop_at(limit):
        def say(tokens, rows):
            if tokens >= limit:
                raise KeyboardInterrupt

        return say

    for limit in range(64, 900, 150):
        with pytest.raises(KeyboardInterrupt):
            harvest(config, tmp_path / "c", host=host, corpus=TEXTS, say=stop_at(limit))
    harvest(config, tmp_path / "c", host=host, corpus=TEXTS)
    assert files(tmp_path / "c") == files(tmp_path / "straight")


def test_a_finished_harvest_is_left_alone(host, tmp_path, monkeypatch):
    first = harvest(CONFIG, tmp_path / "c", host=host, corpus=TEXTS)
    before = files(tmp_path / "c")
    monkeypatch.setattr(Runner, "start", None)
    assert harvest(CONFIG, tmp_path / "c", host=host, corpus=TEXTS) == first
    assert files(tmp_path / "c") == before


def test_more_tokens_go_on_with_a_finished_harvest(host, tmp_path):
    small = harvest(change(tokens=300), tmp_path / "c", host=host, corpus=TEXTS)
    assert small["tokens_run"] == 304  # whole windows
    rows = open_cache(tmp_path / "c").split("train").read(0, small["rows"]["train"])
    large = harvest(change(tokens=900), tmp_path / "c", host=host, corpus=TEXTS)
    assert large["tokens_run"] == 912
    assert large["rows"]["train"] > small["rows"]["train"]
    np.testing.assert_array_equal(open_cache(tmp_path / "c").split("train").read(0, len(rows)), rows)
    with pytest.raises(DataError, match="holds 912 tokens, more than the 100 asked for"):
        harvest(change(tokens=100), tmp_path / "c", host=host, corpus=TEXTS)


def test_tokens_beyond_the_corpus_are_all_of_it(host, tmp_path, cache):
    facts = harvest(change(tokens=10**6), tmp_path / "c", host=host, corpus=TEXTS)
    assert facts["rows"] == {s: cache.split(s).rows for s in ("train", "heldout")}
    assert harvest(change(tokens=10**6), tmp_path / "c", host=host, corpus=TEXTS) == facts


# ------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sites": ("blocks.0.hook_resid_post",)}, "sites"),
        ({"seed": 5}, "seed"),
        ({"context_size": 32}, "text.context_size"),
        ({"dtype": "bfloat16"}, "dtype"),
    ],
)
def test_another_configuration_is_refused_by_name(host, cache, changes, named):
    before = files(cache.path)
    with pytest.raises(DataError, match=f"another one than asked for.*{named}"):
        harvest(change(**changes), cache.path, host=host, corpus=TEXTS)
    assert files(cache.path) == before


def test_another_model_and_other_texts_are_refused(cache, host):
    with pytest.raises(DataError, match=r"another one than asked for.*host\.digest"):
        harvest(CONFIG, cache.path, host=tiny_host(jax.random.key(1)), corpus=TEXTS)
    with pytest.raises(DataError, match=r"another one than asked for.*corpus\.digest"):
        harvest(CONFIG, cache.path, host=host, corpus=[*TEXTS[:-1], "x"])


def test_impossible_requests(host, tmp_path):
    with pytest.raises(HostError, match=r"blocks\.7"):
        harvest(change(sites=("blocks.7.hook_resid_post",)), tmp_path / "c", host=host, corpus=TEXTS)
    with pytest.raises(ConfigError, match="context_size = 1000, but this host takes at most 512"):
        harvest(change(context_size=1000), tmp_path / "c", host=host, corpus=TEXTS)
    with pytest.raises(ConfigError, match="no BOS token"):
        harvest(change(bos="window"), tmp_path / "c", host=host, corpus=TEXTS)
    with pytest.raises(DataError, match="holds no text"):
        harvest(CONFIG, tmp_path / "c", host=host, corpus=["", ""])


@pytest.mark.parametrize(
    "changes",
    [
        {"sites": ()},
        {"sites": (SITE, SITE)},
        {"batch_size": 0},
        {"tokens": 0},
        {"heldout_fraction": 1.0},
        {"part": 1},
        {"parts": 0},
        {"seed": -1},
        {"outlier_factor": 0.5},
    ],
)
def test_impossible_values(changes):
    with pytest.raises(ConfigError, match="expected"):
        change(**changes)


def test_a_host_that_gives_nan_is_refused(host, tmp_path):
    broken = dataclasses.replace(host, params=jax.tree.map(lambda x: x * np.nan, host.params))
    with pytest.raises(DataError, match="hold NaN or infinity"):
        harvest(CONFIG, tmp_path / "c", host=broken, corpus=TEXTS)


def test_a_disk_too_small_is_noticed_before_the_start(host, tmp_path, monkeypatch):
    monkeypatch.setattr(Folder, "free_bytes", lambda self: 1000)
    with pytest.raises(DataError, match=r"needs about 0\.00 GB more in .*make room, ask for fewer tokens"):
        harvest(CONFIG, tmp_path / "c", host=host, corpus=TEXTS)
    monkeypatch.undo()
    harvest(change(dtype="int8"), tmp_path / "c", host=host, corpus=TEXTS)  # the advice can be followed


# ------------------------------------------------------------------------------------------------- configuration
def test_estimates_come_close(host, cache):
    estimate = CONFIG.estimate(host, Corpus.of(TEXTS), measure=True)
    rows = sum(cache.split(s).rows for s in ("train", "heldout"))
    assert abs(estimate.rows / rows - 1) < 0.15
    assert estimate.bytes == estimate.rows * (32 * 4 + 16)
    assert estimate.seconds > 0
    assert change(tokens=300).estimate(host, Corpus.of(TEXTS)).tokens == 304
    assert change(tokens=10**9).estimate(host, Corpus.of(TEXTS)).tokens == estimate.tokens


def test_the_configuration_survives_a_file():
    config = change(chat_template="{text}", tokens=5, outlier_factor=None)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    with pytest.raises(ConfigError, match="'contextsize' is unknown to HarvestConfig; did you mean 'context_size'"):
        from_dict({"type": "harvest", "contextsize": 5})


def test_progress_is_told(host, tmp_path):
    told = []
    harvest(CONFIG, tmp_path / "c", host=host, corpus=TEXTS, say=lambda *x: told.append(x))
    tokens, rows = zip(*told, strict=True)
    assert list(tokens) == sorted(tokens)
    assert list(rows) == sorted(rows)
    assert tokens[-1] >= 1000
    assert rows[-1] == sum(open_cache(tmp_path / "c").split(s).rows for s in ("train", "heldout"))


@pytest.mark.real
def test_a_real_model_on_real_text(tmp_path):
    config = HarvestConfig(tokens=2048, batch_size=4, context_size=128, heldout_fraction=0.1)
    facts = harvest(config, tmp_path / "c")
    assert sum(facts["rows"].values()) + sum(facts["dropped"].values()) == 2048
    assert 90 < facts["sites"]["blocks.9.hook_resid_post"]["median_norm"] < 200  # 139 was measured
