"""Plans: the page follows the recipe, bytes come from the compiled step, and bad input is one sentence."""

import dataclasses
import importlib.util
import json
import math
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxsae.cli.plan import Plan as Command
from jaxsae.config import from_dict, read_file
from jaxsae.data.manifest import Manifest
from jaxsae.data.store import Folder
from jaxsae.data.writer import Block, CacheWriter
from jaxsae.errors import ConfigError, DataError
from jaxsae.kernels._dispatch import compiling_for
from jaxsae.kernels.sharded.encode_topk import TILE_BYTES
from jaxsae.parallel import MeshConfig, make_mesh
from jaxsae.plan import open_target, page, plan
from jaxsae.plan.hlo import collectives
from jaxsae.plan.measure import compile_and_read
from jaxsae.recipes import Programs, topk
from jaxsae.train import TrainConfig

ROOT = pathlib.Path(__file__).parents[2]
D, S, B, K = 32, 1024, 64, 4
CONFIG = TrainConfig(
    topk.Config(d_in=D, d_sae=S, k=K), cache="none", train_batch_size_tokens=B, mesh=MeshConfig(data=2, latent=4)
)


def planned(config=CONFIG):
    return plan(config, open_target("local"), suggest=False)


@pytest.fixture(scope="module")
def base():
    return planned()


def test_memory_is_what_a_device_holds(base):
    parts, latents = base.measured.parts, S // 4
    assert parts["parameters"] == 4 * (2 * D * latents + latents + D)
    assert parts["moments"] == 2 * parts["parameters"] + 4
    assert parts["batch"] == 2 * B // 2 * D
    assert base.measured.peak >= sum(parts.values())
    rows = {name: (placement, size) for name, _, _, placement, size in base.measured.arrays}
    assert rows["params.W_enc"] == ("whole, latent", 4 * D * latents)


def test_collectives_are_those_of_the_design(base):
    """Candidates, sums of [B/2, D] over latents and of gradients over rows; more only while latents are dead."""
    m, others = base.measured, 3 / 4
    by = [(c.kind, c.shape, c.devices, c.where) for c in m.collectives]
    assert ("all-reduce", f"f32[{B // 2},{D}]", 4, "always") in by
    assert {c.where for c in m.collectives} == {"always", "branch"}
    reconstruction = 2 * others * 4 * B // 2 * D
    gradients = 2 * (1 / 2) * 4 * 2 * D * S // 4
    candidates = 2 * others * 8 * B // 2 * K
    assert m.received("always") == pytest.approx(reconstruction + gradients + candidates, rel=0.25)


def test_the_page_changes_with_the_recipe(base):
    def changed(**values):
        return planned(dataclasses.replace(CONFIG, recipe=dataclasses.replace(CONFIG.recipe, **values)))

    without = changed(aux_loss_coefficient=0.0)
    assert base.measured.received("branch") > 0
    assert without.measured.received("branch") == 0
    assert page(without) != page(base)
    double = changed(d_sae=2 * S)
    assert double.measured.parts["parameters"] - 4 * D == 2 * (base.measured.parts["parameters"] - 4 * D)
    averaged = changed(average_decay=0.9)
    assert averaged.measured.parts["running mean"] == base.measured.parts["parameters"]


def test_page_and_data_say_the_same(base):
    data = json.loads(json.dumps(base.to_json()))
    assert data["mesh"] == {"run": 1, "data": 2, "latent": 4}
    assert data["peak"] == base.measured.peak
    text = page(base, "jaxsae plan x.yaml --topology local")
    assert "fits" in text
    assert "| params.W_enc | 32 x 1,024 | float32 | whole, latent |" in text


def test_bytes_of_collectives_by_hand():
    text = """
%branch.1 (x: f32[8]) -> f32[8] {
  %g = f32[4,8]{1,0} all-gather(%y), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

%body (x: f32[8]) -> f32[8] {
  %s = bf16[16]{0} reduce-scatter(%y), replica_groups=[2,4]<=[8], to_apply=%add
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %c = f32[8] conditional(%p, %a, %b), branch_computations={%branch.1, %other}
  %w = f32[8] while(%c), condition=%cond, body=%body
  %t = (f32[8]{0}, s32[8]{0}) all-reduce(%y, %z), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %q = f32[8] all-to-all-start(%y), replica_groups=[1,8]<=[8]
}
"""
    found = {c.kind: (c.received, c.devices, c.where) for c in collectives(text)}
    assert found["all-gather"] == (0.75 * 128, 4, "branch")
    assert found["reduce-scatter"] == (3 * 32, 4, "loop")
    assert found["all-reduce"] == (2 * 7 / 8 * 64, 8, "always")
    assert found["all-to-all"] == (7 / 8 * 32, 8, "always")


@pytest.mark.parametrize(
    ("topology", "words"),
    [("v9:2x2", "no topology 'v9:2x2'"), ("v5e", "expected a chip"), ("v5e:3x5", "nearest: v5e:2x4 or v5e:4x4")],
)
def test_a_topology_that_is_not_there(topology, words):
    with pytest.raises(ConfigError, match=words):
        open_target(topology)


def test_missing_libtpu_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install libtpu"):
        open_target("v5e:2x2")


def test_no_width_is_refused():
    config = dataclasses.replace(CONFIG, recipe=topk.Config(d_sae=S, k=K))
    with pytest.raises(ConfigError, match=r"give recipe\.d_in"):
        planned(config)


def test_the_width_is_taken_from_a_cache_behind_a_url():
    """A folder of the name of a URL was looked for, and none was found."""
    rows = np.ones((8, D), np.float32)
    writer = CacheWriter("memory://plan/acts", Manifest(sites=(("x", D),), dtype="float32"))
    writer.commit({"train": Block({"x": rows}, np.arange(8), np.arange(8))})
    writer.finish()
    config = dataclasses.replace(CONFIG, recipe=topk.Config(d_sae=S, k=K), cache="memory://plan/acts")
    assert planned(config).recipe.d_in == D


def test_what_is_wrong_with_a_cache_behind_a_url_is_told():
    config = dataclasses.replace(CONFIG, recipe=topk.Config(d_sae=S, k=K), cache="memory://plan/nothing")
    with pytest.raises(DataError, match="memory://plan/nothing"):
        planned(config)
    assert planned(dataclasses.replace(config, recipe=CONFIG.recipe)).recipe.d_in == D  # told: not looked for


@pytest.mark.slow
def test_compiles_for_a_tpu_and_advises_when_it_does_not_fit():
    pytest.importorskip("libtpu")
    recipe = topk.Config(d_in=4096, d_sae=1_048_576, k=64)
    config = TrainConfig(recipe, cache="none", train_batch_size_tokens=4096, mesh=MeshConfig(data=2, latent=2))
    found = plan(config, open_target("v5e:2x2"))
    assert not found.measured.fits
    assert found.measured.peak > 0
    assert found.advice
    assert found.advice[0].change == "mesh data 1 x latent 4"
    assert all(a.peak > 0 for a in found.advice)


@pytest.mark.slow
def test_sixteen_million_latents_never_hold_all_pre_activations():
    """Of what has a row's or a tile's numbers for every latent of a device, nothing is larger than one tile.

    The batch is of 8,192 rows, which no weight's side is; fusions count as well, though they need no buffer.
    """
    pytest.importorskip("libtpu")
    config = from_dict(read_file(ROOT / "configs" / "topk_16m.yaml"), TrainConfig)
    recipe, mesh = config.method(), make_mesh(1, 256, open_target("v5e:16x16").devices)
    width, latents = recipe.d_in, recipe.d_sae // 256
    batch = {"x": jax.ShapeDtypeStruct((2 * width, width), "bfloat16")}
    with compiling_for("tpu", mesh.devices.flat[0].device_kind):
        lowered = Programs(recipe, mesh, batch).lower(batch)
    shapes = re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", compile_and_read(lowered, "tpu")[1])
    sides = {tuple(map(int, s.split(","))) for s in shapes}
    spread = {s for s in sides if latents in s and math.prod(s) > latents}
    weights = {(width, latents), (latents, width)}
    assert weights <= spread  # so that the text was read
    tile = max(math.prod(s) for s in spread - weights)
    assert 8 * latents < tile <= TILE_BYTES // 4
    assert not [s for s in sides if math.prod(s) > max(math.prod(w) for w in weights)]


def test_page_and_data_lie_beside_each_other_whatever_the_page_is_called(tmp_path, monkeypatch):
    """Also behind a URL, and where the name has a dot that begins no ending."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "type: train\nrecipe: {type: recipe.topk, d_in: 8, d_sae: 32, k: 2}\ncache: none\n"
    )
    (tmp_path / "file").write_text("")
    for name in ("memory://plans/topk.md", "new/topk.v5e-4x4"):
        Command("run.yaml", output=name).run()
    assert Folder("memory://plans").names() == ["topk.json", "topk.md"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["topk.v5e-4x4", "topk.v5e-4x4.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "new", "run.yaml"]
    with pytest.raises(ConfigError, match="cannot be made"):
        Command("run.yaml", output="file/topk.md").run()


def test_the_command_ends_with_a_sentence_and_a_status(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "type: train\nrecipe: {type: recipe.topk, d_in: 8, d_sae: 36, k: 2}\ncache: none\nmesh: {latent: 8}\n"
    )
    run = [sys.executable, "-m", "jaxsae", "plan", str(file)]
    code = "import jax; jax.config.update('jax_num_cpu_devices', 8); from jaxsae.cli.main import main; main()"
    done = subprocess.run([run[0], "-c", code, *run[3:]], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the nearest are 32 or 40" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_page_that_could_not_be_written_is_refused_before_the_step_is_compiled(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("type: train\nrecipe: {type: recipe.topk, d_in: 8, d_sae: 32, k: 2}\ncache: none\n")
    with pytest.raises(ConfigError, match=r"the folder of '/dev/null/plan\.md' cannot be made"):
        Command(str(file), output="/dev/null/plan.md").run()
    with pytest.raises(ConfigError, match=r"the data beside it .* found 'plan\.json'"):  # the data would take its place
        Command(str(file), output="plan.json").run()
    data = Command(str(file), output=str(tmp_path / "a/plan.md")).run()
    assert json.loads((tmp_path / "a/plan.json").read_text()) == json.loads(json.dumps(data))
    assert (tmp_path / "a/plan.md").read_text().startswith("# topk: 8 to 32 latents")
