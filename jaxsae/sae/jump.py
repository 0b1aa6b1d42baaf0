"""Learned thresholds: two step functions with straight-through gradients, and the selector JumpReLU made of them.

A step has no useful derivative, but its *expectation over rows* has one: d/dtheta E[1(pre > theta)] = -p(theta), the
density of pre at the threshold, which a kernel of bandwidth eps estimates from the rows near it (Rajamanoharan et al.
2024b, 2407.14435).  With u = (pre - theta) / eps and a kernel K of integral 1:

    step(pre, theta) = 1(pre > theta)         d/dtheta = -K(u) / eps           d/dpre = 0
    jump(pre, theta) = pre 1(pre > theta)     d/dtheta = -theta K(u) / eps     d/dpre = 1(pre > theta)

With `to_pre` the estimate also flows into pre with the other sign, as both depend on pre - theta (Anthropic, January
2025 update, "the gradient flows to all parameters").  Both functions read *pre*: a step of the gated code would see
only the upper half of the window and halve the estimate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.codes import DenseCodes
from jaxsae.sae.records import Ctx, Pre, Selection, Want
from jaxsae.sae.selectors import Threshold, dead_candidates
from jaxsae.sae.slots import Dictionary
from jaxsae.typing import Params, PyTree

Kernel = Literal["rectangle", "gaussian", "triangular", "cosine", "epanechnikov", "quartic", "silverman", "cauchy"]


def _within(u: jax.Array, inside: jax.Array) -> jax.Array:
    """`inside` where |u| < 1/2, else 0."""
    return jnp.where(jnp.abs(u) < 0.5, inside, 0.0)


def _silverman(u: jax.Array) -> jax.Array:
    v = jnp.abs(2 * u) / math.sqrt(2)
    return jnp.exp(-v) * jnp.sin(v + math.pi / 4)


#: Smoothing kernels of integral 1.  Those of bounded support live on (-1/2, 1/2); the others have half-width 1/2.  The
#: choice is that of overcomplete, whose gaussian, cosine and silverman integrate to 1/2, eps and 2 instead.
KERNELS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "rectangle": lambda u: _within(u, jnp.ones_like(u)),
    "gaussian": lambda u: 2 / math.sqrt(2 * math.pi) * jnp.exp(-2 * u**2),
    "triangular": lambda u: _within(u, 2 * (1 - 2 * jnp.abs(u))),
    "cosine": lambda u: _within(u, 1 + jnp.cos(2 * math.pi * u)),
    "epanechnikov": lambda u: _within(u, 1.5 * (1 - 4 * u**2)),
    "quartic": lambda u: _within(u, 15 / 8 * (1 - 4 * u**2) ** 2),
    "silverman": _silverman,
    "cauchy": lambda u: 2 / (math.pi * (1 + 4 * u**2)),
}


def density(pre: jax.Array, theta: jax.Array, bandwidth: jax.Array, kernel: str) -> jax.Array:
    """K((pre - theta) / bandwidth) / bandwidth: what one row adds to the estimated density at the threshold."""
    return KERNELS[kernel]((pre - theta) / bandwidth) / bandwidth


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def step(
    pre: jax.Array, theta: jax.Array, bandwidth: jax.Array, kernel: Kernel = "rectangle", to_pre: bool = False
) -> jax.Array:
    """1(pre > theta) as f32, with the gradients of the module docstring.

    Args:
        pre: [B, S] pre-activations.
        theta: thresholds of a shape that broadcasts, such as [1, S]; their gradient is summed over the rest.
        bandwidth: [] eps, in units of pre.  It gets no gradient.
        kernel: smoothing kernel, a key of `KERNELS`.
        to_pre: let the estimate flow into pre as well.

    Example:
        >>> float(jax.grad(lambda t: step(jnp.float32(1.1), t, 0.5))(1.0))
        -2.0
    """
    return (pre > theta).astype(jnp.float32)


@step.defjvp
def _step_jvp(kernel: str, to_pre: bool, primals: tuple, tangents: tuple) -> tuple:
    (pre, theta, bandwidth), (d_pre, d_theta, _) = primals, tangents
    moved = d_pre - d_theta if to_pre else -d_theta
    return step(pre, theta, bandwidth, kernel, to_pre), density(pre, theta, bandwidth, kernel) * moved


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def jump(
    pre: jax.Array, theta: jax.Array, bandwidth: jax.Array, kernel: Kernel = "rectangle", to_pre: bool = False
) -> jax.Array:
    """relu(pre) 1(pre > theta), with the gradients of the module docstring; arguments as `step`.

    The rectifier matters only where a threshold is negative: there the value does not depend on theta, and neither
    does its gradient.

    Example:
        >>> jump(jnp.array([0.5, 2.0]), jnp.array([1.0, 1.0]), 0.1).tolist()
        [0.0, 2.0]
    """
    return jnp.where(pre > theta, jax.nn.relu(pre), 0.0)


@jump.defjvp
def _jump_jvp(kernel: str, to_pre: bool, primals: tuple, tangents: tuple) -> tuple:
    (pre, theta, bandwidth), (d_pre, d_theta, _) = primals, tangents
    moved = d_pre - d_theta if to_pre else -d_theta
    near = jax.nn.relu(theta) * density(pre, theta, bandwidth, kernel)
    on = (pre > jax.nn.relu(theta)).astype(pre.dtype)
    return jump(pre, theta, bandwidth, kernel, to_pre), on * d_pre + near * moved


@register("selector.jump_relu")
@dataclass(frozen=True)
class JumpRelu:
    """z = pre 1(pre > theta) with a learned threshold per latent (JumpReLU, Rajamanoharan et al. 2024b).

    The leaf is `threshold` [S], or `log_threshold` [S] with `log`; always f32, as a vector is under every precision
    policy: steps of the size of a learning rate would round away in bf16.  The bandwidth is `hyper["bandwidth"]`.
    Adam moves a leaf by about lr a step, so a log threshold moves by the *factor* exp(lr) a step and a plain one by lr:
    where thresholds have far to go from a small start, choose the plain one, or a larger start.

    A training step logs `threshold_window_share`, the share of pre-activations within half a bandwidth of their
    threshold: only these move it, so at a share near 0 thresholds stand still.

    Args:
        start: threshold at the start, in units of pre.
        log: train log(threshold), which keeps it positive.
        kernel: smoothing kernel.
        to_pre: let the estimate flow into the encoder as well.
    """

    start: float = 0.001
    log: bool = True
    kernel: Kernel = "rectangle"
    to_pre: bool = False
    may_miss = False
    forms = ("threshold",)
    fixed = ()
    gives = ("theta",)
    reads = ("bandwidth",)

    @property
    def axes(self) -> dict[str, str]:
        return {"log_threshold" if self.log else "threshold": "S"}

    def init(self, key: jax.Array, d_sae: int) -> Params:
        if self.log:
            return {"log_threshold": jnp.full(d_sae, math.log(self.start), jnp.float32)}
        return {"threshold": jnp.full(d_sae, self.start, jnp.float32)}

    def theta(self, p: Params) -> jax.Array:
        """[S] f32 thresholds."""
        return jnp.exp(p["log_threshold"].astype(jnp.float32)) if self.log else p["threshold"].astype(jnp.float32)

    def select(self, p: Params, pre: Pre, D: Dictionary, ctx: Ctx, want: Want) -> Selection:
        theta = self.theta(p)
        value = jump(pre.value, theta[None], ctx.hyper["bandwidth"], self.kernel, self.to_pre)
        aux = dead_candidates(pre, ctx, want)
        inside = jnp.abs(pre.value - theta[None]) < ctx.hyper["bandwidth"] / 2
        near = jnp.mean(inside.astype(jnp.float32), axis=1)
        return Selection(DenseCodes(value), aux=aux, pre=pre if want.pre else None, theta=theta, near=near)

    def frozen(self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str) -> tuple[Threshold, Params]:
        """The learned thresholds as they are: the inference form is exact."""
        return Threshold(), {"threshold": self.theta(p)}

    def review(self, recipe: Any) -> list[str]:
        """Warnings about a start from which the thresholds hardly move.

        Raises:
            ConfigError: a log of a threshold that is not positive, or no window at all.
        """
        bandwidth = dict(recipe.hyper)["bandwidth"]
        if bandwidth <= 0:
            raise ConfigError(f"recipe {recipe.name!r}: bandwidth must be positive, found {bandwidth}")
        if self.log and self.start <= 0:
            raise ConfigError(
                f"recipe {recipe.name!r}: the logarithm of a threshold needs a positive start, found {self.start}; "
                "use log=False or start at 0.001"
            )
        if self.start <= 0:
            return ["thresholds start at 0, where the reconstruction gives them no gradient (its factor is theta)"]
        ratio = bandwidth / self.start
        if ratio < 0.01:
            return [
                f"bandwidth {bandwidth:g} is {ratio:.2g} of the starting threshold {self.start:g}: hardly any "
                "pre-activation falls into so narrow a window, so thresholds will not move"
            ]
        if ratio > 100:
            return [
                f"bandwidth {bandwidth:g} is {ratio:.3g} times the starting threshold {self.start:g}: the "
                f"reconstruction reaches thresholds with a factor theta/bandwidth = {1 / ratio:.2g} only"
            ]
        return []
