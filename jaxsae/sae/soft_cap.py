"""A smooth upper bound of codes, around any selector."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.codes import Codes
from jaxsae.sae.records import Ctx, Pre, Selection, Want
from jaxsae.sae.selectors import Relu
from jaxsae.sae.slots import Dictionary, Selector
from jaxsae.typing import Params, PyTree


@register("selector.soft_cap")
@dataclass(frozen=True)
class SoftCap:
    """The codes of another selector, worth limit * tanh(value / limit): never above `limit`, 0 stays 0.

    What is selected does not change.  An option of MSAE (Zaigrajew et al. 2025, 2502.20578; limit 30), applied after
    the rank selection, so that every nested level sees the same capped values.
    """

    selector: Selector
    limit: float = 30.0

    @classmethod
    def example(cls) -> "SoftCap":
        return cls(Relu(), 0.5)

    def __post_init__(self) -> None:
        if self.limit <= 0:
            raise ConfigError(f"SoftCap: the limit must be above 0, found {self.limit}")

    @property
    def axes(self) -> Any:
        return self.selector.axes

    @property
    def fixed(self) -> tuple[str, ...]:
        return self.selector.fixed

    @property
    def may_miss(self) -> bool:
        return self.selector.may_miss

    @property
    def forms(self) -> tuple[str, ...]:
        return self.selector.forms

    @property
    def cap(self) -> int | None:
        return getattr(self.selector, "cap", None)

    @property
    def rule(self) -> Any:
        return getattr(self.selector, "rule", None)

    @property
    def ordered(self) -> bool:
        return getattr(self.selector, "ordered", False)

    @property
    def select_affine(self) -> Any:
        """There only if the inner selector has it: `hasattr` decides whether the encoding can be fused."""
        inner = self.selector.select_affine  # type: ignore[attr-defined]
        return lambda *args: self._capped(inner(*args))

    def init(self, key: jax.Array, d_sae: int) -> Params:
        return self.selector.init(key, d_sae)

    def select(self, p: Params, pre: Pre, D: Dictionary, ctx: Ctx, want: Want) -> Selection:
        return self._capped(self.selector.select(p, pre, D, ctx, want))

    def frozen(self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str) -> tuple["SoftCap", Params]:
        inner, leaves = self.selector.frozen(p, track, hyper, D, form)
        return replace(self, selector=inner), leaves

    def _capped(self, selection: Selection) -> Selection:
        def bound(codes: Codes | None) -> Any:
            return codes and replace(codes, values=self.limit * jnp.tanh(codes.values / self.limit))

        return selection._replace(
            codes=bound(selection.codes), ranked=bound(selection.ranked), aux=bound(selection.aux)
        )
