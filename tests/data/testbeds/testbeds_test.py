"""Testbeds: what is drawn is what the configuration says, and the truth explains the rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.config import dump_json, from_dict, members, to_dict
from jaxsae.data import (
    Cooccurrence,
    DarkMatter,
    Hierarchy,
    Mixture,
    Superposition,
    TestbedSource,
    VariableCount,
    testbed,
)
from jaxsae.data.testbeds import PRESETS, capped
from jaxsae.errors import ConfigError

ROWS = 4096


def draw(bed, seed=0, rows=ROWS):
    truth = jax.jit(bed.init)(jax.random.key(seed))
    drawn = jax.jit(lambda t, k: bed.sample(t, k, rows))(truth, jax.random.key(seed + 1))
    return jax.device_get(truth), jax.device_get(drawn)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_rows_are_sums_of_unit_atoms_and_deterministic(name):
    bed = testbed(name)
    truth, drawn = draw(bed)
    assert drawn["x"].shape == (ROWS, bed.d_in)
    assert drawn["codes"].shape == (ROWS, bed.features)
    assert drawn["x"].dtype == drawn["codes"].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(truth.atoms, axis=1), 1, rtol=1e-5)
    again = draw(bed)[1]
    np.testing.assert_array_equal(again["x"], drawn["x"])
    assert not np.array_equal(draw(bed, seed=5)[1]["x"], drawn["x"])
    np.testing.assert_allclose((drawn["codes"] != 0).mean(0), truth.probability, atol=0.03)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_vmap_over_keys_is_the_lone_draws(name):
    bed = testbed(name)
    keys = jax.random.split(jax.random.key(0), 2)

    def both(key):
        truth = bed.init(key)
        return bed.sample(truth, jax.random.fold_in(key, 1), 16)["x"]

    np.testing.assert_allclose(jax.vmap(both)(keys), jnp.stack([both(k) for k in keys]), atol=1e-5)


@pytest.mark.parametrize("name", [n for n in sorted(PRESETS) if n not in ("S8", "S13")])
def test_what_the_codes_leave_over_is_the_noise(name):
    bed = testbed(name)
    truth, drawn = draw(bed)
    rest = drawn["x"] - drawn["codes"] @ truth.atoms
    scale = bed.noise * np.sqrt((getattr(bed, "rank", None) or bed.d_in) / bed.d_in)
    np.testing.assert_allclose(rest.std(), scale, rtol=0.02)


def test_every_registered_testbed_has_a_preset_and_writes_itself_down():
    assert {type(b) for b in PRESETS.values()} == set(members("testbed").values())
    for bed in PRESETS.values():
        assert from_dict(to_dict(bed)) == bed
        assert hash(bed)
        assert dump_json(bed)


def test_frequencies_follow_a_capped_zipf_law():
    bed = Superposition(features=100, active=5, decay=1.0, most=0.5)
    p = np.asarray(bed.init(jax.random.key(0)).probability)
    assert p.max() == 0.5
    assert p.sum() == pytest.approx(5, rel=1e-5)
    below = p[p < 0.5]
    ranks = np.arange(1, 101)[p < 0.5]
    np.testing.assert_allclose(below * ranks, (below * ranks)[0], rtol=1e-5)
    np.testing.assert_allclose(capped(np.ones(4), 2.0), 0.5)


def test_signs_are_fair_and_magnitudes_about_one():
    z = draw(Superposition(features=40, active=8, signed=True))[1]["codes"]
    on = z[z != 0]
    assert abs((on > 0).mean() - 0.5) < 0.02
    np.testing.assert_allclose([np.abs(on).mean(), np.abs(on).std()], [1, 0.25], atol=0.02)
    assert (draw(Superposition())[1]["codes"] >= 0).all()


def test_low_rank_rows_stay_in_their_subspace():
    truth, drawn = draw(Superposition(d_in=32, features=64, rank=12))
    space = truth.extra["subspace"]
    np.testing.assert_allclose(drawn["x"] @ space.T @ space, drawn["x"], atol=1e-4)
    assert np.linalg.matrix_rank(drawn["x"], tol=1e-2) == 12


def test_children_come_only_with_their_parent():
    bed = Hierarchy(parents=6, children=3, exclusive=0.5, p_child=(0.2, 0.3))
    truth, drawn = draw(bed, rows=20000)
    on, parent = drawn["codes"] > 0, truth.extra["parent"]
    child = np.flatnonzero(parent >= 0)
    assert not (on[:, child] & ~on[:, parent[child]]).any()
    siblings = on[:, 6:].reshape(-1, 6, 3).sum(2)
    assert siblings[:, :3].max() == 1
    assert siblings[:, 3:].max() == 3
    given = on[:, child].sum(0) / on[:, parent[child]].sum(0)
    np.testing.assert_allclose(given, np.tile([0.2, 0.25, 0.3], 6), atol=0.04)


def test_conditionally_orthogonal_children():
    bed = Hierarchy(d_in=48, parents=5, children=4, sibling_cosine=0.6)
    atoms = np.asarray(bed.init(jax.random.key(0)).atoms)
    for t in range(5):
        kids = atoms[5 + 4 * t : 9 + 4 * t]
        np.testing.assert_allclose(kids @ atoms[t], 0, atol=1e-5)
        between = (kids @ kids.T)[np.triu_indices(4, 1)]
        assert abs(between.mean() - 0.6) < 0.15
        np.testing.assert_allclose(np.linalg.norm(kids, axis=1), 1, rtol=1e-5)


def test_partners_fire_together_and_pairs_independently():
    bed = Cooccurrence(pairs=10, p_both=0.2, p_alone=0.05)
    truth, drawn = draw(bed, rows=20000)
    on = drawn["codes"] > 0
    joint = (on.T.astype(float) @ on) / len(on)
    partner = joint[np.arange(20), truth.extra["partner"]]
    np.testing.assert_allclose(partner, 0.2, atol=0.015)
    strangers = joint[0, 2:]
    np.testing.assert_allclose(strangers, 0.25 * 0.25, atol=0.015)


def test_rows_have_every_number_of_features():
    bed = VariableCount(features=50, least=2, most=9, decay=0.5)
    on = draw(bed)[1]["codes"] > 0
    counts = np.bincount(on.sum(1), minlength=11)
    assert counts[:2].sum() == counts[10:].sum() == 0
    np.testing.assert_allclose(counts[2:10] / ROWS, 1 / 8, atol=0.03)
    assert on.mean(0)[0] > 2 * on.mean(0)[-1]
    assert (draw(VariableCount(features=4, least=4, most=4))[1]["codes"] != 0).all()


def test_dark_matter_is_the_sum_of_its_parts():
    bed = DarkMatter()
    truth, drawn = draw(bed)
    sparse = drawn["codes"] @ truth.atoms
    rest = drawn["x"] - sparse - drawn["dense"] - drawn["nonlinear"]
    np.testing.assert_allclose(rest.std(), bed.base.noise, rtol=0.05)
    assert np.linalg.matrix_rank(drawn["dense"], tol=1e-2) == bed.dense_rank
    assert np.abs(drawn["nonlinear"]).max() <= bed.nonlinear * bed.hidden
    # not a linear function of the codes: the best linear map leaves a tenth of it or more
    fit = np.linalg.lstsq(drawn["codes"], drawn["nonlinear"], rcond=None)[0]
    left = drawn["nonlinear"] - drawn["codes"] @ fit
    assert (left**2).sum() > 0.1 * (drawn["nonlinear"] ** 2).sum()


def test_mixtures_hold_exactly_so_many_classes():
    bed = Mixture(features=12, mixed=3)
    truth, drawn = draw(bed)
    np.testing.assert_array_equal(drawn["codes"].sum(1), 3)
    rest = drawn["x"] - drawn["codes"] @ truth.atoms
    expected = np.sqrt(3 * bed.styles * bed.variation**2 / bed.d_in + bed.noise**2)
    np.testing.assert_allclose(rest.std(), expected, rtol=0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Superposition(features=8, active=9),
        lambda: Superposition(features=8, active=4, most=0.4),
        lambda: Superposition(rank=65),
        lambda: Hierarchy(children=8, exclusive=1.0),
        lambda: Hierarchy(p_child=(0.5, 0.2)),
        lambda: Cooccurrence(p_both=0.9, p_alone=0.2),
        lambda: VariableCount(least=5, most=4),
        lambda: Mixture(mixed=40),
        lambda: DarkMatter(dense_rank=0),
        lambda: testbed("S9"),
    ],
)
def test_impossible_settings_are_refused_in_one_sentence(make):
    with pytest.raises(ConfigError, match=r"expected|possible|did you mean"):
        make()


def test_source_gives_labelled_batches_from_seed_and_step():
    bed = dataclasses.replace(testbed("S1"), features=32, active=3)
    source = TestbedSource(bed, batch_size=64, seed=3)
    x = source.batch(7)["x"]
    np.testing.assert_array_equal(x, TestbedSource(bed, 64, seed=3).batch(7)["x"])
    assert not np.array_equal(x, source.batch(8)["x"])
    labelled = source.labelled(7)
    np.testing.assert_allclose(x, labelled["codes"] @ np.asarray(source.truth.atoms), atol=0.08)
    halves = [TestbedSource(bed, 64, seed=3, process_index=i, process_count=2).batch(7)["x"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), x)
