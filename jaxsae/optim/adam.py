"""Optimiser specifications: hashable descriptions from which an optax transformation is built.

A transformation is two closures and never equal to its twin, so a recipe stores the description.  The chain gives a
*direction*; the step multiplies by `hyper["lr"] * schedule(step)`, so a sweep over learning rates is one program.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import optax

from jaxsae.config import register


class Optimizer(Protocol):
    """`build()` returns an optax transformation whose update is a direction of descent before the learning rate."""

    def build(self) -> optax.GradientTransformation: ...


@register("optim.adam")
@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015) after clipping the global gradient norm.

    Args:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment (6.25e-10 in Gao et al. 2024).
        clip: largest global norm of the gradient; None for no clipping.
        mu_dtype: dtype of the first moment.
        lr_factors: (leaf, factor) pairs: leaves with a learning rate of their own, relative to the others'.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip: float | None = 1.0
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    lr_factors: tuple[tuple[str, float], ...] = ()

    def build(self) -> optax.GradientTransformation:
        chain = [] if self.clip is None else [optax.clip_by_global_norm(self.clip)]
        chain.append(optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.mu_dtype))
        if self.lr_factors:
            factors = dict(self.lr_factors)
            chain.append(optax.stateless(lambda u, p: {name: a * factors.get(name, 1.0) for name, a in u.items()}))
        return optax.chain(*chain) if len(chain) > 1 else chain[0]
