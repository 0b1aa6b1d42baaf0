"""Collectives read from the text of a compiled program."""

import pytest

from jaxsae.plan.hlo import collectives


def test_what_every_side_of_a_conditional_does_happens_always_and_once():
    both = "%b = f32[8]{0} all-reduce(%x), replica_groups=[1,2]<=[2], to_apply=%add"
    one = "%c = f32[4]{0} all-reduce(%x), replica_groups=[1,2]<=[2], to_apply=%add"
    text = (
        f"%yes (x: f32[8]) -> f32[8] {{\n  {both}\n  {one}\n}}\n"
        f"%no (x: f32[8]) -> f32[8] {{\n  {both}\n}}\n"
        "ENTRY %main (x: f32[8]) -> f32[8] {\n"
        "  %r = f32[8]{0} conditional(%p, %x, %x), branch_computations={%yes, %no}\n}\n"
    )
    assert {(c.shape, c.where) for c in collectives(text)} == {("f32[8]", "always"), ("f32[4]", "branch")}
    assert len(collectives(text)) == 2


SUM = "%s = f32[8]{0} all-reduce(%x), replica_groups=[1,2]<=[2], to_apply=%add"
COMPARED = (
    "%cond (p: (s32[])) -> pred[] {\n  %limit = s32[]{:T(128)} constant(4)\n"
    "  %i = s32[] get-tuple-element(%p), index=0\n"
    "  ROOT %lt = pred[] compare(%i, %limit), direction=LT\n}\n"
)


def in_a_loop(attributes="", condition=COMPARED, body=f"  {SUM}\n", more=""):
    return (
        f"{more}%body (x: f32[8]) -> f32[8] {{\n{body}}}\n{condition}"
        "ENTRY %main (x: f32[8]) -> f32[8] {\n"
        f"  %w = f32[8] while(%x), condition=%cond, body=%body{attributes}\n}}\n"
    )


@pytest.mark.parametrize(
    ("text", "where", "times"),
    [
        (in_a_loop(', backend_config={"known_trip_count":{"n":"7"}}'), "always", 7),
        (in_a_loop(), "always", 4),
        (in_a_loop(condition=COMPARED.replace("constant(4)", "parameter(0)")), "loop", 1),
        (in_a_loop(condition=COMPARED.replace("direction=LT", "direction=NE")), "loop", 1),
    ],
    ids=["noted", "compared", "unknown", "another comparison"],
)
def test_what_a_loop_does_is_done_in_every_turn(text, where, times):
    (found,) = collectives(text)
    assert (found.where, found.times, found.received) == (where, times, times * 32)


def test_loops_in_loops_and_branches_in_loops():
    inner = "%inner (x: f32[8]) -> f32[8] {\n  " + SUM + "\n}\n"
    nested = '  %v = f32[8] while(%x), condition=%c2, body=%inner, backend_config={"known_trip_count":{"n":"3"}}\n'
    (found,) = collectives(in_a_loop(body=nested, more=inner))
    assert (found.where, found.times) == ("always", 12)
    chosen = "  %v = f32[8] conditional(%p, %x, %x), branch_computations={%inner, %nothing}\n"
    nothing = "%nothing (x: f32[8]) -> f32[8] {\n  %y = f32[8] add(%x, %x)\n}\n"
    (found,) = collectives(in_a_loop(body=chosen, more=inner + nothing))
    assert (found.where, found.times, found.received) == ("branch", 4, 4 * 32)
