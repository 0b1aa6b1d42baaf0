"""Bundle counts: the reader of the compiler's dump, and the committed table against a new count."""

import json
import pathlib

import pytest

from jaxsae.errors import ConfigError
from jaxsae.testing import bundles, tpu_aot
from jaxsae.testing.bundle_cases import CASES

needs_libtpu = pytest.mark.skipif(tpu_aot.missing() is not None, reason=str(tpu_aot.missing()))

#: A grid loop of five bundles around a loop of three, then another loop of one; empty bundles lose their depth mark.
FINAL = """
     0   :  { %s1 = start } /* entry */
   0x1 LB: > { %s2 = head
strides: (1, 2) */ }
   0x2   : > { %v3 = vld }
   0x3 LB: >> { %v4 = vld }
   0x4   :  {}
   0x5   : >> { %v5 = vst }
   0x6 PF: > { %s6 = sadd }
   0x7 LB: >> { %v7 = vld }
   0x8   : > { %s8 = branch }
   0x9   :  {}
   0xa   :  { %s9 = halt }
"""
USE = "some words\n MXU, VALU\n 2, 4\n== UTILIZATION:\n" + "\n".join(f"{i} 1" for i in range(11))


def test_reads_nested_loops():
    found = bundles.loops(FINAL)
    assert [(l.depth, l.bundles, l.own) for l in found] == [(1, 9, 5), (2, 3, 3), (2, 1, 1)]


def test_adds_up_the_slots_of_a_loop_without_its_inner_loops():
    outer, inner, _ = bundles.loops(FINAL, USE)
    assert outer.slots == {"MXU": 1 + 2 + 6 + 8 + 9, "VALU": 5}
    assert inner.slots == {"MXU": 3 + 4 + 5, "VALU": 3}


@pytest.fixture
def case():
    return bundles.Case("k.v5e", "v5e", lambda: None, "k", "row", lambda loops: 1.0)


@pytest.mark.parametrize(("new", "fails"), [(10.0, False), (10.9, False), (11.2, True)])
def test_growth_by_more_than_a_tenth_is_reported(case, new, fails, monkeypatch, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps({"k.v5e": {"bundles": 10.0, "libtpu": "1"}}))
    monkeypatch.setattr(bundles, "TABLE", tmp_path / "t.json")
    monkeypatch.setattr(bundles, "measure", lambda case: {"bundles": new, "libtpu": "2"})
    problem = bundles.growth(case)
    assert (problem is not None) == fails
    assert not fails or "11.2 bundles per row (libtpu 2), the table has 10.0 (libtpu 1)" in problem


def test_a_case_without_an_entry_is_reported(case, monkeypatch, tmp_path):
    monkeypatch.setattr(bundles, "TABLE", tmp_path / "t.json")
    assert "is not in t.json" in bundles.growth(case)


def test_refuses_an_unknown_case():
    with pytest.raises(ConfigError, match="no case 'nonsense'"):
        bundles.main(["nonsense"])


def test_every_row_of_the_table_has_a_case():
    assert set(bundles.table()) <= {c.name for c in CASES}


@needs_libtpu
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name, marks=[] if c.quick else pytest.mark.slow) for c in CASES])
def test_no_kernel_has_grown(case):
    assert bundles.growth(case) is None


def test_the_documentation_shows_the_committed_table():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
    assert page.split("<!-- bundles -->")[1].split("<!-- /bundles -->")[0].strip() == bundles.markdown()
