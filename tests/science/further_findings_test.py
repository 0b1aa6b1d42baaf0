"""Further findings of the studies compare the sides that they name: on a lab that trains nothing."""

import numpy as np
import pytest

from jaxsae.science.methods import a02_topk, a03_k_sparse, a05_jumprelu, a24_p_anneal
from jaxsae.testing.members import published

#: FVU of each arm; every other measure is the same number.
LEVELS = {
    "TopK": 0.2,
    "JumpReLU": 0.3,
    "Gated": 0.4,
    "ReLU + L1": 0.5,
    "BatchTopK": 0.25,
    "tanh-quad": 0.1,
    "tanh": 0.6,
}
LEVELS |= {
    "p to 0.2": 0.3,
    "p = 1": 0.45,
    "Gated, p to 0.2": 0.28,
    "Gated, p = 1": 0.42,
    "Multi-TopK": 0.21,
    "GroupMax": 0.206,
}
N = 3


class Trained:
    def __init__(self, name):
        self.name = name

    def judge(self, k=None):
        return None


class Arm:
    def __init__(self, name, trained=None, judged=None, facts=()):
        self.name, self.trained, self.facts = name, trained or Trained(name), dict(facts)

    def at(self, measure, l0):
        return LEVELS[self.name] + 0.001 * np.arange(N)

    def values(self, measure):
        return np.full((N, 1), 4.0) if measure == "l0" else self.at(measure, 4.0)[:, None]


class Lab:
    """Hands out arms and notes what they were asked to train."""

    def __init__(self):
        self.asked, self.rates = {}, {}

    def arm(self, name, job, sweep, values, l0, lr=None):
        assert sweep in dict(job.recipe.hyper)
        assert list(values) == sorted(values)
        self.asked[name] = job.recipe.name
        return Arm(name, facts={"recipe": job.recipe.name})

    def single(self, name, job, score):
        self.asked[name], self.rates[name] = job.recipe.name, 0.01
        return Trained(name)

    def compare(self, claim, better, worse, measure, l0, higher=False):
        from jaxsae.science.finding import finding

        facts = {arm.name: arm.facts for arm in (better, worse)}
        return finding(claim, (better.name, better.at(measure, l0)), (worse.name, worse.at(measure, l0)), higher, facts)


@pytest.fixture
def lab(monkeypatch):
    monkeypatch.setattr(a03_k_sparse, "Arm", Arm)

    def kept(trained, k):
        gain = -0.05 if trained.name == "Multi-TopK" else 0.03
        return np.full((N, 3), LEVELS[trained.name] + gain * (k == 8)) + 0.001 * np.arange(N)[:, None]

    monkeypatch.setattr(a02_topk, "fvu_at", kept)
    return Lab()


def sides(f):
    return f.better[0], f.worse[0]


def test_multi_topk_at_twice_its_k(lab):
    found = a02_topk.at_twice_k(lab, Arm("TopK"))
    assert [f.verdict for f in found] == ["shown"] * 3
    assert [f.effect for f in found] == pytest.approx([0.05, 0.03, 0.07])
    assert found[0].facts["Multi-TopK, 8 kept"]["recipe"] == "multi_topk"


def test_group_max_is_held_against_a_few_percent(lab):
    found = a03_k_sparse.group_max_beside_topk(lab)
    assert found.better == ("GroupMax", pytest.approx(0.03, abs=1e-3))
    assert found.worse == ("0.05", pytest.approx(0.05))
    assert lab.asked["GroupMax"] == "group_max"


def test_threshold_methods_on_both_beds(lab):
    found = list(a05_jumprelu.run(lab, {}))
    assert sides(found[2]) == ("tanh-quad", "tanh")
    assert [sides(f) for f in found[3:]] == [
        ("JumpReLU", "ReLU + L1"), ("JumpReLU", "Gated"), ("Gated", "ReLU + L1"), ("JumpReLU", "BatchTopK")
    ]  # fmt: skip
    assert [f.verdict for f in found[2:]] == ["shown"] * 4 + ["contrary"]


def test_gated_p_annealing(lab):
    found = list(a24_p_anneal.run(lab, {"p_end": 0.2}))
    pairs = [("p to 0.2", "p = 1"), ("Gated, p to 0.2", "Gated, p = 1"), ("p to 0.2", "Gated, p = 1")]
    assert [sides(f) for f in found] == pairs
    assert set(lab.asked.values()) <= set(published())
