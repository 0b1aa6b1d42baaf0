"""Bundle counts: the reader of the compiler's dump, and the committed table against a new count."""

import json
import pathlib

import pytest

from jaxsae.errors import ConfigError
from jaxsae.testing import bundles, tpu_aot
from jaxsae.testing.bundle_cases import CASES

needs_libtpu = pytest.mark.skipif(tpu_aot.missing() is not None, reason=str(tpu_aot.missing()))

#: Bundles 1..13: a loop over a grid.  Bundles 3..9: a loop in it, whose exit test stands before code of the outer loop
#: (marked with the outer depth) that is issued on every pass.  An empty bundle has no mark, one bundle has two lines.
FINAL = """
     0   :  { %s1 = start } /* entry */
   0x1 LB: > { %s2 = head
strides: (1, 2) */ } /* Start region 9 :: Start region 1 */
   0x2   : > { %3 = sbr.rel (%p0) target = $region20 } /* skips the loop, and is no way back */
   0x3 LB: >> { %v4 = vld } /* Start region 5 :: Start region 6 */
   0x4   : > { %v5 = vst (%p1) } /* of the outer loop, predicated */
   0x5   : >> { %6 = sbr.rel (!%p1) target = $region5 }
   0x6   : > { %v7 = vst (%p1) }
   0x7   :  {}
   0x8   : >> { %v8 = vld }
   0x9   : >> { %v9 = vld } /* End region 5 */
   0xa PF: > { %10 = sbr.rel (%p2) target = $region9 } /* Start/End empty region 20 */
   0xb   :  {}
   0xc   :  {}
   0xd   :  {}
   0xe   :  {}
   0xf   :  { %s16 = halt }
"""
USE = "some words\n MXU, VALU\n 2, 4\n== UTILIZATION:\n" + "\n".join(f"{i} 1" for i in range(16))


def test_a_loop_reaches_to_its_branch_back_and_the_delay_slots():
    assert [(l.depth, l.bundles, l.own) for l in bundles.loops(FINAL)] == [(1, 14, 7), (2, 7, 7)]


def test_adds_up_the_slots_of_a_loop_without_its_inner_loops():
    outer, inner = bundles.loops(FINAL, USE)
    assert outer.slots == {"MXU": 1 + 2 + 10 + 11 + 12 + 13 + 14, "VALU": 7}
    assert inner.slots == {"MXU": sum(range(3, 10)), "VALU": 7}


def test_refuses_a_loop_that_never_jumps_back():
    with pytest.raises(ConfigError, match="loop at bundle 3 has no branch back"):
        bundles.loops(FINAL.replace("target = $region5", "target = $region8"))


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


def test_every_case_has_its_row_in_the_table_and_every_row_its_case():
    assert sorted(bundles.table()) == sorted(c.name for c in CASES)
    assert len({c.name for c in CASES}) == len(CASES)


#: Bundles per unit that the kernels must not exceed, at widths of 2304 to 4096; a name stands for all that begin so.
TARGETS = {
    "encode_topk_filter.insertion": 5.5,  # four levels, sorted insertion
    "gather_sum.": 11.0,
    "gather_sum_dots.": 17.5,
    "segment_grad.": 14.0,
}


@pytest.mark.parametrize("name", TARGETS)
def test_committed_counts_are_within_their_targets(name):
    rows = {n: r["bundles"] for n, r in bundles.table().items() if n.startswith(name)}
    assert {c for c in tpu_aot.CHIPS if any(f".{c}." in n for n in rows)} == set(tpu_aot.CHIPS)
    assert all(count <= TARGETS[name] for count in rows.values()), rows


@pytest.mark.parametrize("shape", ["B", "C"])
def test_more_than_half_of_the_insertion_hides_behind_the_matmul_of_v6e(shape):
    """Of four levels.  The chip with the fastest matrix unit has the fewest idle vector slots."""
    count = {n: r["bundles"] for n, r in bundles.table().items()}
    both, alone = count[f"encode_topk_filter.with_matmul.v6e.{shape}.m4"], count[f"strip_matmul.v6e.{shape}"]
    assert both < alone + count["encode_topk_filter.insertion.v6e.B.m4"] / 2


@needs_libtpu
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name, marks=[] if c.quick else pytest.mark.slow) for c in CASES])
def test_no_kernel_has_grown(case):
    assert bundles.growth(case) is None


def test_the_documentation_shows_the_committed_table():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
    assert page.split("<!-- bundles -->")[1].split("<!-- /bundles -->")[0].strip() == bundles.markdown()
