"""Fleets: many runs as one program are the same runs alone, and what is read off at equal L0 is interpolated."""

import jax
import numpy as np
import pytest

from jaxsae.data import Superposition
from jaxsae.recipes import topk
from jaxsae.science.fleet import Job, train
from jaxsae.science.lab import Arm, Lab, ScienceError
from jaxsae.science.measures import MEASURES

BED = Superposition(d_in=8, features=12, active=2, decay=0.0)
JOB = Job(topk(8, 16, k=4, normalize_activations=False, dead_after_tokens=640), BED, steps=6, rows=64)
SWEEP = {"lr": (3e-3, 3e-3), "k": (2, 4)}


@pytest.fixture(scope="module")
def judged():
    return train(JOB, (3, 4), SWEEP).judge()


def test_a_fleet_is_its_runs_alone(judged):
    for seed, number in enumerate((3, 4)):
        for g in range(2):
            alone = train(JOB, (number,), {n: v[g : g + 1] for n, v in SWEEP.items()}).judge()
            np.testing.assert_allclose(alone.yhat[0, 0], judged.yhat[seed, g], atol=2e-5)
            np.testing.assert_array_equal(alone.x[0], judged.x[seed])


def test_settings_share_rows_and_start_but_not_k(judged):
    on = (np.asarray(judged.codes) != 0).sum(-1)
    assert on[:, 0].max() <= 2
    assert on[:, 1].max() > 2
    assert not np.array_equal(judged.x[0], judged.x[1])
    assert judged.sae.W_dec.shape == (2, 2, 16, 8)


def test_progress_reaches_the_last_step():
    seen = []
    train(JOB, (0,), {"lr": (1e-3,)}, seen.append)
    assert seen[-1] == JOB.steps


def test_every_measure_that_fits_the_bed_is_a_number(judged):
    arm = Arm("TopK", None, judged, {})
    for name in MEASURES:
        if name not in ("absorption", "latents_per_axis"):
            assert np.isfinite(arm.values(name)).all(), name
    x, yhat = np.asarray(judged.x[0]), np.asarray(judged.yhat[0, 1])
    fvu = ((x - yhat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    np.testing.assert_allclose(arm.values("fvu")[0, 1], fvu, rtol=1e-4)


def test_equal_l0_is_between_the_settings_around_it(judged):
    arm = Arm("TopK", None, judged, {})
    l0, fvu = arm.values("l0"), arm.values("fvu")
    middle = float(np.sqrt(l0[0, 0] * l0[0, 1]))
    assert arm.at("fvu", middle)[0] == pytest.approx(fvu[0].mean(), rel=0.02)
    with pytest.raises(ScienceError, match="widen the sweep"):
        arm.at("fvu", 9.0)


def test_the_lab_tunes_on_its_own_seed_and_trains_an_arm_once():
    stages = []
    lab = Lab(seeds=(0, 1), progress=lambda stage, done, total: stages.append(stage))
    first = lab.arm("TopK", JOB, "k", (2, 4), l0=3.0)
    assert lab.arm("TopK", JOB, "k", (2, 4), l0=3.0) is first
    assert set(stages) == {"TopK", "TopK, learning rate"}
    assert first.judged.codes.shape[:2] == (2, 2)
    found = lab.compare("itself", first, first, "fvu", 3.0)
    assert found.effect == 0
    assert found.verdict == "not shown"


def test_keys_of_seeds_are_unrelated():
    a, b = (train(JOB, (s,), {"lr": (1e-3,)}).truth.atoms for s in (0, 1))
    assert float(jax.numpy.abs(a - b).max()) > 0.1
