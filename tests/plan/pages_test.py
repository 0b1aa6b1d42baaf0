"""The committed plans are of the committed configurations, and keep what arithmetic says."""

import json
import pathlib

import pytest

from jaxsae.config import read_file
from jaxsae.plan import open_target, plan
from jaxsae.plan.page import gib
from jaxsae.recipes import topk
from jaxsae.train import TrainConfig

ROOT = pathlib.Path(__file__).parents[2]
PLANS = sorted((ROOT / "docs" / "plans").glob("*.json"))


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_a_plan_is_of_its_configuration(path):
    name, topology = path.stem.rsplit(".", 1)
    plan, config = json.loads(path.read_text()), read_file(ROOT / "configs" / f"{name}.yaml")
    assert plan["topology"] == topology.replace("-", ":", 1)
    assert (plan["d_in"], plan["d_sae"]) == (config["recipe"]["d_in"], config["recipe"]["d_sae"])
    assert plan["rows"] == config["train_batch_size_tokens"]
    assert f"docs/plans/{path.stem}.md" in (ROOT / "configs" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_weights_and_moments_are_those_of_both_matrices(path):
    """f32 W_enc and W_dec, two moments of each, split evenly over the latents; biases are what is left."""
    plan = json.loads(path.read_text())
    matrices = 2 * 4 * plan["d_in"] * plan["d_sae"] // plan["devices"]
    moments = matrices if "bf16_moments" in path.stem else 2 * matrices
    assert plan["parts"]["parameters"] == pytest.approx(matrices, rel=1e-3)
    assert plan["parts"]["moments"] == pytest.approx(moments, rel=1e-3)
    assert plan["fits"]
    assert plan["peak"] > matrices + moments


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_page_and_data_tell_the_host_memory_of_both_matrices(path):
    plan, text = json.loads(path.read_text()), path.with_suffix(".md").read_text()
    assert plan["exported"] == pytest.approx(2 * 4 * plan["d_in"] * plan["d_sae"], rel=1e-3)
    assert f"in process 0 at the end of the run: {gib(plan['exported'], 3)} GiB, three times as much behind" in text
    assert f"**fits**: {gib(plan['peak'])} of {gib(plan['limit'])} GiB at the peak" in text


def test_the_committed_plans_have_the_fields_of_a_plan_of_today():
    config = TrainConfig(topk.Config(d_in=8, d_sae=32, k=2), cache="none", train_batch_size_tokens=16)
    today = plan(config, open_target("local")).to_json()
    for path in PLANS:
        assert json.loads(path.read_text()).keys() == today.keys(), path.name


@pytest.mark.parametrize(("name", "most"), [("topk_16m", 8), ("topk_16m_bf16_moments", 6)])
def test_sixteen_million_latents_fit_in_half_of_a_chip(name, most):
    plan = json.loads((ROOT / "docs" / "plans" / f"{name}.v5e-16x16.json").read_text())
    assert plan["peak"] <= most * 2**30


def test_sixteen_million_latents_receive_less_than_160_megabytes_without_auxk():
    plan = json.loads((ROOT / "docs" / "plans" / "topk_16m.v5e-16x16.json").read_text())
    assert sum(c["received"] for c in plan["collectives"] if c["where"] == "always") < 160e6
