"""Collectives read from the text of a compiled program."""

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
