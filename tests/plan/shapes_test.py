"""Topologies: only shapes that slices come in are opened, and libtpu never sees another."""

import itertools
import pathlib
import re

import pytest

from jaxsae.errors import ConfigError
from jaxsae.plan import open_target, topology
from jaxsae.plan.shapes import chips, larger, shapes
from jaxsae.plan.topology import CHIPS
from jaxsae.testing import tpu_aot

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def no_libtpu(monkeypatch):
    """Fails where libtpu is asked: at some shapes it ends the process."""

    def asked(name):
        raise AssertionError(f"libtpu was asked for {name}")

    monkeypatch.setattr(topology, "tpu_devices", asked)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("v5e:0x4", "v5e:1x1 or v5e:2x2"),
        ("v5p:0x2x2", "v5p:2x2x1 or v5p:2x2x2"),
        ("v5e:32x32", "v5e:8x16 or v5e:16x16"),
        ("v6e:16x32", "v6e:8x16 or v6e:16x16"),
        ("v5e:2x2x2", "v5e:2x4"),
        ("v5p:2x2", "v5p:2x2x1"),
        ("v5e:4x2", "v5e:2x4"),
        ("v5e:3x5", "v5e:2x4 or v5e:4x4"),
        ("v5e:4", "v5e:2x2"),
        ("v5p:4x8x4", "v5p:4x4x8"),
        ("v5p:4x4x28", "v5p:8x8x8 or v5p:4x8x16"),
        ("v5p:16x16x32", "v5p:12x20x24 or v5p:16x16x24"),
    ],
)
def test_a_shape_that_no_slice_has_is_refused_with_the_nearest(name, nearest, no_libtpu):
    with pytest.raises(ConfigError, match=re.escape(f"no topology '{name}'")) as refused:
        open_target(name)
    assert str(refused.value).endswith(f"the nearest: {nearest}")


@pytest.mark.parametrize("name", ["v5e:", "v5e:x4", "v5e:2x", "v5e:2x-2", "v5e:2 x2", "v5e:²x2", "v5e:٢x2", ":2x2", ""])
def test_a_name_that_cannot_be_read_is_refused(name, no_libtpu):
    with pytest.raises(ConfigError, match="no topology"):
        open_target(name)


def test_every_topology_that_is_written_down_is_a_shape():
    files = [ROOT / "README.md", *(ROOT / "configs").glob("*.yaml"), *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(path.read_text() for path in (*files, ROOT / "jaxsae" / "cli" / "plan.py"))
    named = set(re.findall(r"\b(v5e|v5p|v6e):(\d+(?:x\d+)+)", text))
    named |= {tuple(name.split(":")) for name in tpu_aot.CHIPS.values()}
    assert {("v5e", "16x16"), ("v6e", "2x4"), ("v5p", "2x2x1")} <= named
    assert [name for name in named if name[1] not in shapes(name[0])] == []


@pytest.mark.parametrize("kind", CHIPS)
def test_larger_slices_have_at_least_twice_the_chips_each(kind):
    first = shapes(kind)[0]
    found = [first, *larger(kind, first)]
    counts = [chips(s) for s in found]
    assert all(b >= 2 * a for a, b in itertools.pairwise(counts))
    assert set(found) <= set(shapes(kind))
    assert chips(next(larger(kind, first, chips_needed=100))) == 128
    assert list(larger(kind, shapes(kind)[-1])) == []


@pytest.mark.parametrize("kind", CHIPS)
def test_libtpu_opens_every_shape(kind):
    pytest.importorskip("libtpu")
    for shape in shapes(kind):
        if chips(shape) <= 1024:
            assert len(open_target(f"{kind}:{shape}").devices) == chips(shape), shape
