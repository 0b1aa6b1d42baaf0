"""Encode: the whole way from rows to codes.  The ordinary member joins an encoder and a selector."""

from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.records import Ctx, Rows, Selection, Want
from jaxsae.sae.slots import Dictionary, Encoder, Selector
from jaxsae.typing import Params, PyTree


@register("encode.pre_select")
@dataclass(frozen=True)
class PreSelect:
    """Pre-activations, then a selection; in one fused op when nobody asks for the pre-activations themselves.

    Fused iff the encoder has `affine`, the selector has `select_affine`, and no term wants dense `pre`.  The same
    recipe with one more dense term switches path by itself, with equal codes and gradients.
    """

    encoder: Encoder
    selector: Selector

    @property
    def d_in(self) -> int:
        return self.encoder.d_in

    @property
    def d_sae(self) -> int:
        return self.encoder.d_sae

    @property
    def axes(self) -> dict[str, str]:
        return {**self.encoder.axes, **self.selector.axes}

    @property
    def fixed(self) -> tuple[str, ...]:
        return (*getattr(self.encoder, "fixed", ()), *self.selector.fixed)

    @property
    def ordered(self) -> bool:
        """Whether the order of latents is structural."""
        return getattr(self.encoder, "ordered", False) or getattr(self.selector, "ordered", False)

    @property
    def may_miss(self) -> bool:
        return self.selector.may_miss

    @property
    def forms(self) -> tuple[str, ...]:
        return self.selector.forms

    def in_sequences(self, positions: int) -> "PreSelect":
        """The same member told that each run of `positions` rows is one sequence; only some encoders care."""
        if not hasattr(self.encoder, "in_sequences"):
            return self
        return replace(self, encoder=self.encoder.in_sequences(positions))

    def init(self, key: jax.Array, rows: Rows, p: Params, D: Dictionary) -> Params:
        first, second = jax.random.split(key)
        return {**self.encoder.init(first, rows, p, D), **self.selector.init(second, self.d_sae)}

    def can_fuse(self, want: Want) -> bool:
        return hasattr(self.selector, "select_affine") and hasattr(self.encoder, "affine") and not want.pre

    def encode(self, p: Params, x: jax.Array, D: Dictionary, ctx: Ctx, want: Want, fused: bool) -> Selection:
        """Codes of normalised rows x [B, D]."""
        # Nobody recomputes an inference, so there a list that may be too short is not used at all.
        judged_alone = getattr(getattr(self.selector, "rule", None), "per_row", False) and not self.may_miss
        if fused and (ctx.train or judged_alone) and self.can_fuse(want):
            fusable: Any = self.selector
            return fusable.select_affine(p, x, self.encoder.affine(p), D, ctx, want)  # type: ignore[attr-defined]
        return self.selector.select(p, self.encoder.pre(p, x, D, ctx), D, ctx, want)

    def frozen(self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str) -> tuple["PreSelect", Params]:
        """The inference member of the asked form and its leaves.

        Raises:
            ConfigError: this selection has no such form.
        """
        if form not in self.forms:
            raise ConfigError(f"no {form!r} form for {type(self.selector).__name__}; possible: {', '.join(self.forms)}")
        selector, leaves = self.selector.frozen(p, track, hyper, D, form)
        if hasattr(self.encoder, "frozen"):  # an encoder with another inference form
            encoder, selector, leaves = self.encoder.frozen(p, selector, leaves)
            return PreSelect(encoder, selector), leaves
        own = {name: p[name] for name in self.encoder.axes}
        return replace(self, selector=selector), {**own, **leaves}
