"""Precision policy: which dtype the large products are computed in.  Masters, moments and sums stay f32."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.typing import Params


@register("optim.precision")
@dataclass(frozen=True)
class Precision:
    """`compute` "bfloat16" casts matrices and rows before the products, which are still summed in f32.

    Vectors (biases, thresholds) and everything that is averaged or stored keep f32.
    """

    compute: Literal["float32", "bfloat16"] = "float32"

    def leaves(self, p: Params) -> Params:
        """Parameters as the forward pass sees them."""
        if self.compute == "float32":
            return p
        return {k: v.astype(jnp.bfloat16) if v.ndim > 1 else v for k, v in p.items()}

    def rows(self, x: jax.Array) -> jax.Array:
        """Input rows as the encoder sees them."""
        return x.astype(self.compute)
