"""Features against a dense table of all activations, computed by one plain run of the dictionary."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.errors import ConfigError
from jaxsae.evals.features import FeaturesConfig, features, promoted_tokens, similar_atoms
from jaxsae.evals.scan import scan
from jaxsae.sae import make_sae

CONFIG = FeaturesConfig(minimum=1, top=3, before=6, after=4, tokens=5)


@pytest.fixture(scope="module")
def table(coder, cache):
    split = cache.split("train")
    return np.asarray(coder.encode(jnp.asarray(split.read(0, split.rows))).dense())


@pytest.fixture(scope="module")
def found(coder, cache, tiny):
    return features(coder, cache, tiny, config=CONFIG)


def test_scan_counts_and_ranks_like_the_dense_table(coder, cache, table):
    out = scan(coder, cache.split("train"), None, n_top=4, n_sample=16)
    np.testing.assert_array_equal(out.fired, (table != 0).sum(0))
    np.testing.assert_allclose(out.total, table.sum(0), rtol=1e-5, atol=1e-5)
    for j in np.flatnonzero(out.fired >= 4):
        np.testing.assert_allclose(out.top.value[j], np.sort(table[:, j])[::-1][:4], rtol=1e-6)
        rows = out.sample.row[j][out.sample.row[j] >= 0]
        assert len(rows) == min(16, out.fired[j])
        assert (table[rows, j] != 0).all()


def test_scan_of_threshold_codes_agrees(coder, cache):
    p = {k: coder.params[k] for k in ("W_enc", "b_enc", "W_dec", "b_dec")}
    sae = make_sae({**p, "threshold": jnp.full(96, 1.0)})
    split = cache.split("train")
    dense = np.asarray(sae.encode(jnp.asarray(split.read(0, split.rows))).dense())
    np.testing.assert_array_equal(scan(sae, split, None).fired, (dense != 0).sum(0))


def test_contexts_of_threshold_codes_show_their_own_values(coder, cache):
    p = {k: coder.params[k] for k in ("W_enc", "b_enc", "W_dec", "b_dec")}
    sae, split = make_sae({**p, "threshold": jnp.full(96, 1.0)}), cache.split("train")
    dense = np.asarray(sae.encode(jnp.asarray(split.read(0, split.rows))).dense())
    for feature in features(sae, cache, latents=[0, 50], config=CONFIG)[0]:
        context = feature.groups[0][1][0]
        assert context.values[context.peak] == pytest.approx(dense[:, feature.latent].max())
        assert context.values.max() == context.values[context.peak]
        assert feature.promoted == ()  # no host was given


def test_first_context_is_the_strongest_row_and_its_own_token(found, cache, table, tiny):
    split = cache.split("train")
    for feature in found[0]:
        name, top = feature.groups[0]
        row = top[0].row
        assert name == "max"
        assert table[row, feature.latent] == table[:, feature.latent].max()
        assert feature.maximum == pytest.approx(table[row, feature.latent])
        assert top[0].values[top[0].peak] == pytest.approx(feature.maximum, rel=1e-5)
        origin = split.origin(np.array([row]))
        document = cache.document(int(origin.doc[0]))
        assert top[0].tokens[top[0].peak] == document[origin.position[0]]


def test_activation_at_every_token_is_that_of_its_row(found, cache, table):
    split = cache.split("train")
    origin = split.origin(np.arange(split.rows))
    row_of = {(d, p): r for r, (d, p) in enumerate(zip(origin.doc.tolist(), origin.position.tolist(), strict=True))}
    checked = 0
    for feature in found[0][:20]:
        for _, group in feature.groups:
            for c in group:
                start = int(origin.position[c.row]) - c.peak
                document = cache.document(c.doc)
                for i, (token, value) in enumerate(zip(c.tokens, c.values, strict=True)):
                    row = row_of.get((c.doc, start + i))
                    want = 0.0 if row is None else table[row, feature.latent]
                    assert value == pytest.approx(want, rel=1e-5)
                    assert token == document[start + i]
                    checked += value > 0
    assert checked > 100


def test_quantiles_lie_where_they_say(found, table):
    for feature in found[0]:
        strengths = np.sort(table[table[:, feature.latent] > 0, feature.latent])
        groups = dict(feature.groups)
        if not 20 < len(strengths) <= 64:  # beyond 64 the sample, not every row, decides
            continue
        for q in ("0.9", "0.5", "0.1"):
            for c in groups.get(q, ()):
                rank = np.searchsorted(strengths, c.values[c.peak] * (1 - 1e-5)) / (len(strengths) - 1)
                assert rank == pytest.approx(float(q), abs=0.2)


def test_no_context_is_shown_twice(found):
    for feature in found[0]:
        rows = [c.row for _, group in feature.groups for c in group]
        assert len(rows) == len(set(rows))


def test_promoted_tokens_are_the_ends_of_the_logit_lens(tiny, coder):
    directions = np.asarray(coder.W_dec)[:3]
    gain = np.asarray(tiny.params["ln_final"])
    logits = (directions * gain) @ np.asarray(tiny.params["embed"]).T
    out = promoted_tokens(tiny, "blocks.1.hook_mlp_out", directions, 4)
    for row, (up, down) in zip(logits, out, strict=True):
        order = np.argsort(row)
        assert [w for w, _ in up] == tiny.tokenizer.token_strings(order[::-1][:4])
        assert [w for w, _ in down] == tiny.tokenizer.token_strings(order[:4])
        assert up[0][1] == pytest.approx(row.max() - row.mean(), rel=1e-3)
    assert promoted_tokens(tiny, "blocks.1.attn.hook_z", directions, 4) is None


def test_similar_atoms_are_the_nearest_by_cosine():
    atoms = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    cosine = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in atoms] for a in atoms])
    np.fill_diagonal(cosine, -2)
    for j, near in zip([4, 9], similar_atoms(atoms, np.array([4, 9]), 3), strict=True):
        assert [i for i, _ in near] == np.argsort(-cosine[j])[:3].tolist()
        assert near[0][1] == pytest.approx(cosine[j].max(), rel=1e-5)
    assert similar_atoms(atoms, np.array([4]), 1, others=atoms)[0][0] == (4, pytest.approx(1.0))


def test_choice_of_latents(coder, cache, found):
    assert [f.latent for f in features(coder, cache, latents=[5, 2])[0]] == [2, 5]
    few = features(coder, cache, include=[7], config=dataclasses.replace(CONFIG, latents=10))[0]
    assert 7 in [f.latent for f in few]
    assert len(few) == 10
    assert {f.latent for f in few} < {f.latent for f in found[0]}
    with pytest.raises(ConfigError, match="0 to 95"):
        features(coder, cache, latents=[96])
