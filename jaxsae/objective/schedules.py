"""Schedules: the shape over training, in 0..1, of a coefficient or learning rate whose peak is an array elsewhere."""

from dataclasses import dataclass
from typing import Literal, Protocol

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError


class Schedule(Protocol):
    """(step []) -> factor [] f32."""

    def __call__(self, step: jax.Array) -> jax.Array: ...


@register("schedule.constant")
@dataclass(frozen=True)
class Constant:
    """1 throughout."""

    def __call__(self, step: jax.Array) -> jax.Array:
        return jnp.float32(1.0)


@register("schedule.linear")
@dataclass(frozen=True)
class Linear:
    """Linear warm-up over the first steps, linear decay to `end` over the last ones.

        up = min(1, (step + 1) / warm_up_steps)      down = 1 - (1 - end) * (steps done of the decay) / decay_steps

    Args:
        warm_up_steps: 0 for none.
        decay_steps: 0 for none; otherwise `training_steps` says where the run ends.
        training_steps: total steps of the run.
        end: factor reached at the end of the decay, and kept.

    Example:
        >>> s = Linear(warm_up_steps=2, decay_steps=2, training_steps=6)
        >>> [round(float(s(i)), 2) for i in range(6)]
        [0.5, 1.0, 1.0, 1.0, 1.0, 0.5]
    """

    warm_up_steps: int = 0
    decay_steps: int = 0
    training_steps: int = 0
    end: float = 0.0

    def __call__(self, step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        up = jnp.minimum(1.0, (step + 1) / max(self.warm_up_steps, 1))
        if not self.decay_steps:
            return up
        done = jnp.clip((step - (self.training_steps - self.decay_steps)) / self.decay_steps, 0.0, 1.0)
        return up * (1 - (1 - self.end) * done)


@register("schedule.cosine")
@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine from 1 to `end` at `training_steps`."""

    training_steps: int
    warm_up_steps: int = 0
    end: float = 0.0

    def __call__(self, step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        up = jnp.minimum(1.0, (step + 1) / max(self.warm_up_steps, 1))
        span = max(self.training_steps - self.warm_up_steps, 1)
        done = jnp.clip((step - self.warm_up_steps) / span, 0.0, 1.0)
        return up * (self.end + (1 - self.end) * 0.5 * (1 + jnp.cos(jnp.pi * done)))


@register("schedule.anneal")
@dataclass(frozen=True)
class Anneal:
    """From `start` times the final value to 1 times it over `steps`, then constant; for k, or for an exponent.

        linear:  start + (1 - start) t        geometric:  start^(1 - t)        t = min(1, step / steps)

    The selector's capacity must hold the largest k that occurs, which is k * start.

    Example:
        >>> [float(Anneal(5.0, steps=4)(i)) for i in (0, 2, 4, 9)]
        [5.0, 3.0, 1.0, 1.0]
    """

    start: float = 2.0
    steps: int = 0
    shape: Literal["linear", "geometric"] = "linear"

    def __post_init__(self) -> None:
        if self.start <= 0 or self.steps < 0:
            raise ConfigError(f"Anneal: expected start > 0 and steps >= 0, found {self.start} and {self.steps}")

    def __call__(self, step: jax.Array) -> jax.Array:
        t = jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / self.steps) if self.steps else jnp.float32(1.0)
        return self.start ** (1 - t) if self.shape == "geometric" else self.start + (1 - self.start) * t


@register("schedule.cosine_warm_up")
@dataclass(frozen=True)
class CosineWarmUp:
    """Half a cosine from `start` up to 1 over the first `steps` steps, then 1 (Rajamanoharan et al. 2024b, 2407.14435).

    Example:
        >>> [round(float(CosineWarmUp(2)(i)), 2) for i in range(4)]
        [0.1, 0.55, 1.0, 1.0]
    """

    steps: int
    start: float = 0.1

    def __call__(self, step: jax.Array) -> jax.Array:
        done = jnp.clip(jnp.asarray(step, jnp.float32) / max(self.steps, 1), 0.0, 1.0)
        return self.start + (1 - self.start) * 0.5 * (1 - jnp.cos(jnp.pi * done))
