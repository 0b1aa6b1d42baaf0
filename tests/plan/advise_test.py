"""Advice: what applies is compiled, alone first, then together, then on larger slices, and never without end."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxsae.cli.plan import Plan as Command
from jaxsae.errors import ConfigError
from jaxsae.parallel import AXES, make_mesh
from jaxsae.plan import Target, open_target, plan
from jaxsae.plan.advise import MOST_SLICES, advise, changes, together
from jaxsae.plan.measure import Measured
from jaxsae.plan.setting import Setting, state_bytes
from jaxsae.plan.shapes import chips
from jaxsae.plan.topology import CHIPS
from jaxsae.recipes import topk
from jaxsae.train import Fleet, Member, TrainConfig

GIB = 2**30


class Device:
    """One that exists for nobody."""

    platform, process_index = "tpu", 0

    def __init__(self, number):
        self.id = number


def opened(name):
    kind, _, shape = name.partition(":")
    return Target(name, [Device(i) for i in range(chips(shape))], CHIPS[kind])


def setting(data=1, latent=4, run=1, d_sae=2**20, rows=4096, recipe=None, **more):
    grid = np.array([Device(i) for i in range(run * data * latent)], object).reshape(run, data, latent)
    return Setting(recipe or topk(4096, d_sae, 64, bfloat16=True), Mesh(grid, AXES), rows, "bfloat16", **more)


class Compiler:
    """Says what fits, and remembers what it was given."""

    def __init__(self, fits):
        self.fits, self.seen = fits, []

    def __call__(self, other):
        self.seen.append(other)
        fits = self.fits(other)
        return Measured(fits, (10 if fits else 20) * GIB, {"parameters": GIB})


def names(found):
    return [name for name, _ in found]


def test_a_mesh_that_is_all_latent_still_gets_advice():
    """Nothing helps on v5e:2x2: single changes, then two at once, then twice the chips until it fits."""
    compiler, told = Compiler(lambda s: s.mesh.size >= 16), []
    found = advise(setting(), opened("v5e:2x2"), compiler, told.append, opened)
    assert [(a.change, a.fits) for a in found] == [
        ("moments: bfloat16", False),
        ("a batch of 2,048 rows", False),
        ("moments: bfloat16 and a batch of 2,048 rows", False),
        ("v5e:2x4 (mesh data 1 x latent 8)", False),
        ("v5e:4x4 (mesh data 1 x latent 16)", True),
    ]
    assert len(told) == len(compiler.seen) == len(found)
    assert all(a.change in text for a, text in zip(found, told, strict=True))
    assert {a.peak for a in found} == {10 * GIB, 20 * GIB}


def test_what_is_enough_alone_is_not_combined():
    compiler = Compiler(lambda s: s.rows == 2048)
    found = advise(setting(), opened("v5e:2x2"), compiler, opener=opened)
    assert [a.change for a in found if a.fits] == ["a batch of 2,048 rows"]
    assert {s.mesh.size for s in compiler.seen} == {4}


def test_it_ends_where_nothing_fits():
    compiler = Compiler(lambda s: False)
    found = advise(setting(data=2, latent=2), opened("v5e:2x2"), compiler, opener=opened)
    slices = [a.change for a in found if a.change.startswith("v5e:")]
    assert len(slices) == MOST_SLICES
    assert len(found) <= 5 + 1 + MOST_SLICES
    assert advise(setting(), opened("v5e:16x16"), compiler, opener=opened)[-1].change.startswith("moments")


def test_slices_too_small_for_the_state_alone_are_not_tried():
    big = setting(d_sae=2**24)
    found = advise(big, opened("v5e:2x2"), Compiler(lambda s: s.mesh.size >= 256), opener=opened)
    tried = [a.change.split()[0] for a in found if a.change.startswith("v5e:")]
    assert tried == ["v5e:8x16", "v5e:16x16"]
    assert 64 * CHIPS["v5e"].memory < state_bytes(big)
    assert state_bytes(big) == pytest.approx(3 * 4 * 2 * 4096 * 2**24, rel=1e-3)  # two matrices, two moments of each


def test_moments_are_spread_over_rows_where_there_are_devices_along_them():
    single = dict(changes(setting(data=2, latent=2)))
    assert single["mesh.zero: true"].zero
    assert single["mesh data 1 x latent 4"].mesh.shape["latent"] == 4
    assert "mesh.zero: true" not in names(changes(setting(data=1, latent=4)))
    assert "mesh.zero: true" not in names(changes(setting(data=2, latent=2, zero=True)))
    (name, both), *_ = together(setting(data=2, latent=2))
    assert name == "moments: bfloat16, a batch of 2,048 rows and mesh.zero: true"
    assert (both.zero, both.rows, type(both.method.optimizer).__name__) == (True, 2048, "AdamBf16")


def test_what_does_not_apply_is_not_offered():
    odd = setting(data=1, latent=1, d_sae=1001, rows=63, recipe=topk(16, 1001, 4))
    assert names(changes(odd)) == ["moments: bfloat16", "bfloat16: true"]
    assert names(together(odd)) == []
    split = setting(data=2, latent=1, d_sae=1001, rows=64, recipe=topk(16, 1001, 4, bfloat16=True))
    assert names(changes(split)) == ["moments: bfloat16", "a batch of 32 rows"]


def test_a_sweep_stays_one():
    fleet = Fleet(topk(64, 1024, 4, bfloat16=True), tuple(Member(i) for i in range(8)))
    apart = dict(changes(setting(data=1, latent=1, run=8, rows=64, recipe=fleet)))
    assert apart["mesh data 1 x latent 8"].mesh.shape == {"run": 1, "data": 1, "latent": 8}
    assert all(s.recipe.size == 8 for s in apart.values())
    assert type(apart["moments: bfloat16"].method.optimizer).__name__ == "AdamBf16"
    assert state_bytes(setting(recipe=fleet)) == 8 * state_bytes(setting(recipe=fleet.recipe))


def test_a_larger_slice_is_passed_over_where_nothing_divides():
    """Nine latents over eight devices."""
    found = advise(
        setting(data=1, latent=1, rows=3, recipe=topk(16, 9, 2)),
        opened("v5e:1x1"),
        Compiler(lambda s: 0),
        opener=opened,
    )
    assert [a for a in found if a.change.startswith("v5e")] == []


def test_a_larger_slice_that_libtpu_does_not_open_costs_no_advice():
    def some(name):
        if name == "v5e:2x4":
            raise ConfigError(f"libtpu did not open {name!r}")
        return opened(name)

    found = advise(setting(), opened("v5e:2x2"), Compiler(lambda s: s.mesh.size >= 16), opener=some)
    assert found[0].change == "moments: bfloat16"
    assert found[-1].change == "v5e:4x4 (mesh data 1 x latent 16)"


def test_advice_on_a_local_mesh_is_for_its_own_devices():
    """Of eight devices a mesh may have two."""
    own = make_mesh(2, 1, jax.devices()[:2])
    found = dict(changes(Setting(topk(16, 64, 4), own, 64, "float32")))
    assert list(found["mesh data 1 x latent 2"].mesh.devices.flat) == jax.devices()[:2]


@pytest.fixture
def small(monkeypatch):
    """A machine of 100 kB, for the command."""
    local = dataclasses.replace(open_target("local"), shared=1e5)
    monkeypatch.setattr("jaxsae.plan.open_target", lambda name: local)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "type: train\nrecipe: {type: recipe.topk, d_in: 16, d_sae: 256, k: 4, bfloat16: true}\ncache: none\n"
        "train_batch_size_tokens: 32\n"
    )
    return str(path)


def test_the_command_names_what_it_compiled(small, file, capsys):
    with pytest.raises(ConfigError, match="does not fit on local; nor with what was tried") as failed:
        Command(file).run()
    out, err = capsys.readouterr()
    for change in ("moments: bfloat16", "a batch of 16 rows", "moments: bfloat16 and a batch of 16 rows"):
        assert change in str(failed.value)
        assert f"compiling with {change} ..." in err
        assert f"| {change} | does not fit |" in out


def test_the_command_says_how_to_get_advice(small, file):
    with pytest.raises(ConfigError, match="does not fit on local; call it with --suggest"):
        Command(file, suggest=False).run()


@pytest.mark.slow
def test_a_step_too_large_for_every_change_gets_a_slice_that_holds_it():
    pytest.importorskip("libtpu")
    recipe = topk.Config(d_in=4096, d_sae=2**20, k=64, bfloat16=True)
    config = TrainConfig(recipe, cache="none", train_batch_size_tokens=4096)
    told = []
    found = plan(config, open_target("v5e:2x2"), tell=told.append)
    assert found.measured.fits is False
    assert found.measured.peak > found.measured.kept > found.chip.memory
    assert all(a.peak > 0 for a in found.advice)
    *tried, best = found.advice
    assert not any(a.fits for a in tried)
    assert best.fits
    assert best.change == "v5e:4x4 (mesh data 1 x latent 16)"
    assert best.peak < found.chip.memory
    assert len(told) == len(found.advice)
    assert math.isfinite(found.limit)
