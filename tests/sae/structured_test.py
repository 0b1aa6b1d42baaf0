"""Coders of several sites, of linear transforms and along sequences: exported as they are, with the codes they had."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxsae.errors import ConfigError
from jaxsae.io import load, save
from jaxsae.recipes import permute
from jaxsae.sae import (
    BySite,
    PerSite,
    PreSelect,
    Rank,
    RowShape,
    SharedSites,
    SparseCodes,
    Stacked,
    Transforms,
    Triangular,
    decode_rows,
)
from jaxsae.testing import conformance
from jaxsae.testing.members import BASE
from jaxsae.testing.wholes import POSITIONS, WHOLES


@functools.cache
def fresh(tag):
    """(recipe, initial state, exported SAE, rows) of a whole recipe."""
    recipe, x = WHOLES[tag](BASE), conformance.batches(1)[0]["x"]
    state = jax.jit(recipe.init)(jax.random.key(0), {"x": x})
    return recipe, state, recipe.export(state), x


BEYOND = ("dictionary.triangular", "dictionary.per_site", "dictionary.transforms", "readout.per_site_skip")


@pytest.mark.parametrize("tag", [*BEYOND, "encoder.temporal", "encoder.lorsa", "encode.pursuit"])
def test_exports_what_evaluation_sees(tag):
    recipe, state, sae, x = fresh(tag)
    out = recipe.forward(state.params, {"x": x}, recipe.ctx(state, train=False))
    shaped = x.reshape(-1, POSITIONS, x.shape[1])  # rows of one sequence are consecutive
    yhat = recipe.norm.undo(state.params, out.yhat, x)
    np.testing.assert_allclose(np.asarray(sae(shaped)).reshape(x.shape), np.asarray(yhat), atol=5e-5)
    codes = np.asarray(sae.encode(shaped).dense()).reshape(len(x), -1)
    np.testing.assert_array_equal(codes != 0, np.asarray(out.sel.codes.dense()) != 0)


@pytest.mark.parametrize("tag", ["dictionary.triangular", "dictionary.per_site", "dictionary.transforms"])
def test_structure_survives_export_and_disk(tag, tmp_path):
    recipe, _, sae, x = fresh(tag)
    assert sae.dictionary == recipe.dictionary
    save(sae, tmp_path)
    np.testing.assert_array_equal(np.asarray(load(tmp_path)(x)), np.asarray(sae(x)))


@pytest.mark.parametrize("tag", ["dictionary.triangular", "dictionary.per_site"])
def test_padded_atoms_decode_the_same(tag):
    recipe, state, sae, x = fresh(tag)
    codes = sae.encode(x)
    dense = np.asarray(codes.dense()) @ np.asarray(recipe.dictionary.atoms(state.params))
    np.testing.assert_allclose(np.asarray(recipe.dictionary.decode(state.params, codes)), dense, atol=1e-5)
    norms = np.linalg.norm(np.asarray(recipe.dictionary.atoms(state.params)), axis=1)
    np.testing.assert_allclose(np.asarray(recipe.dictionary.norms(state.params)), norms, rtol=1e-5)


def test_a_permutation_is_refused_where_order_is_structure():
    recipe, state, _, _ = fresh("dictionary.triangular")
    with pytest.raises(ConfigError, match="structural"):
        permute(recipe, state, jax.numpy.arange(recipe.d_sae))


def test_every_site_keeps_its_own_k():
    _, _, sae, x = fresh("dictionary.triangular")
    codes = sae.encode(x)
    assert isinstance(codes, SparseCodes)
    on = np.asarray(codes.dense() != 0).reshape(len(codes.values), 2, -1).sum(-1)
    assert on.max() <= 4
    assert (on.min(0) > 0).any()


def test_transforms_need_the_row():
    _, _, sae, x = fresh("dictionary.transforms")
    codes = sae.encode(x)
    with pytest.raises(ConfigError, match="like=x"):
        sae.decode(codes)
    p, D = sae.params, sae.dictionary
    maps = [np.asarray(p[f"U_{r}"])[i] @ np.asarray(p[f"V_{r}"])[i] for r, n in D.ranks for i in range(n)]
    wanted = np.einsum("bs,bd,sde->be", np.asarray(codes.dense()), np.asarray(x), np.stack(maps))
    np.testing.assert_allclose(np.asarray(decode_rows(D, p, codes, x)), wanted, atol=1e-4)
    np.testing.assert_allclose(
        np.asarray(D.norms(p)), np.linalg.norm(np.stack(maps).reshape(D.d_sae, -1), axis=1), rtol=1e-5
    )


def test_norms_of_shared_atoms():
    D = Stacked(3, 8, 2, sum_weight=1.0, whole_weight=0.5)
    W = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    each, whole = np.linalg.norm(W, axis=2).sum(1), np.linalg.norm(W.reshape(3, -1), axis=1)
    np.testing.assert_allclose(np.asarray(D.norms({"W_dec": W.reshape(3, 8)})), each + 0.5 * whole, rtol=1e-6)
    plain = dataclasses.replace(D, sum_weight=0.0, whole_weight=0.0)
    assert (np.asarray(plain.norms({"W_dec": W.reshape(3, 8)})) == 1).all()


class TestRowShape:
    def test_stacked_sites_in_and_out(self):
        shape = RowShape((2, 3), (2, 5))
        assert shape.lead(np.zeros((7, 2, 3)), 6) == (7,)
        assert shape.lead(np.zeros((7, 6)), 6) == (7,)
        assert shape.restore(np.zeros((7, 10)), (7,), None, 6).shape == (7, 2, 5)
        assert shape.restore(np.zeros((7, 10)), (7,), np.zeros((7, 6)), 6).shape == (7, 10)

    def test_heads_of_any_number(self):
        shape = RowShape(heads=True)
        assert shape.lead(np.zeros((7, 2, 3)), 6) == (7,)
        assert shape.lead(np.zeros((7, 3, 2)), 6) == (7,)
        assert shape.restore(np.zeros((7, 6)), (7,), np.zeros((7, 3, 2)), 6).shape == (7, 3, 2)

    def test_what_does_not_fit_is_named(self):
        with pytest.raises(ConfigError, match=r"rows of shape \(2, 3\) or vectors of width 6, found .* \(7, 3\)"):
            RowShape((2, 3)).lead(np.zeros((7, 3)), 6)


def test_a_sequence_cannot_be_longer_than_its_rotary_tables():
    _, _, sae, x = fresh("encoder.lorsa")
    assert sae(x.reshape(-1, 4, 12)).shape == (12, 4, 12)
    with pytest.raises(ConfigError, match="knows 4 positions, found 8"):
        sae(x.reshape(-1, 8, 12))


def test_attention_looks_back_only():
    """Changing the last position of a sequence changes no earlier code."""
    for tag in ("encoder.lorsa", "encoder.temporal"):
        _, _, sae, x = fresh(tag)
        x = x.reshape(-1, POSITIONS, 12)
        before, after = (np.asarray(sae.encode(a).dense()) for a in (x, x.at[:, -1].add(3.0)))
        np.testing.assert_array_equal(before[:, :-1], after[:, :-1])
        assert (before[:, -1] != after[:, -1]).any()


def test_slots_used_above_are_the_public_ones():
    recipe = WHOLES["dictionary.triangular"](BASE)
    assert isinstance(recipe.dictionary, Triangular)
    assert recipe.encoder == PreSelect(PerSite(12, 32, 2), BySite(Rank(4), 2))
    assert isinstance(WHOLES["encoder.shared_sites"](BASE).encoder.encoder, SharedSites)
    assert isinstance(WHOLES["dictionary.transforms"](BASE).dictionary, Transforms)
