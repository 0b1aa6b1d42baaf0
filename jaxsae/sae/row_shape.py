"""How a row looks from outside: a vector, a stack of sites, or attention heads.  Inside it is always one vector."""

import math
from dataclasses import dataclass

import jax

from jaxsae.config import register
from jaxsae.errors import ConfigError


@register("row_shape")
@dataclass(frozen=True)
class RowShape:
    """The axes that make up one row of input and of output.

    `inputs` (L, D/L) and `outputs` (L, E/L) are the stacked sites of a crosscoder or cross-layer coder; () is a plain
    vector.  With `heads` a row may come as [heads, width per head], as attention values do, for any number of heads;
    the output then has the input's axes.  A row already flattened to its whole width is accepted everywhere, and is
    answered in kind.
    """

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    heads: bool = False

    def lead(self, x: jax.Array, width: int) -> tuple[int, ...]:
        """The axes of x in front of a row of `width` numbers.

        Raises:
            ConfigError: the last axes of x make up no row.
        """
        n = len(self.inputs)
        if n and x.shape[-n:] == self.inputs:
            return x.shape[:-n]
        if x.ndim and x.shape[-1] == width:
            return x.shape[:-1]
        if self.heads and math.prod(x.shape[-2:]) == width:
            return x.shape[:-2]
        wanted = f"vectors of width {width}"
        if n:
            wanted = f"rows of shape {self.inputs} or {wanted}"
        if self.heads:
            wanted = f"heads of {width} numbers together, or {wanted}"
        raise ConfigError(f"this dictionary reads {wanted}, found an array of shape {x.shape}")

    def restore(self, y: jax.Array, lead: tuple[int, ...], like: jax.Array | None, width: int) -> jax.Array:
        """Rows y [B, E] with the axes they have outside: those of `like` where it tells, else `outputs`."""
        flat_asked = like is not None and like.shape == (*lead, width)
        if self.heads and like is not None and y.shape[-1] == width:
            return y.reshape(like.shape)
        outputs = self.outputs if self.outputs and not (flat_asked and self.inputs) else y.shape[-1:]
        return y.reshape(*lead, *outputs)
