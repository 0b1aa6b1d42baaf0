"""Adam whose moments are kept in bf16 by stochastic rounding: half the memory and traffic of the optimiser state."""

import zlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsae.config import register
from jaxsae.optim.adam import Adam


def stochastic_round(x: jax.Array, noise: jax.Array) -> jax.Array:
    """x [...] f32 to one of the two nearest bf16 values, the nearer the likelier: the mean over the noise is x.

    bf16 is the upper half of f32, so adding 16 random bits to the lower half and cutting it off rounds away from zero
    with exactly the probability that the lower half stands for.  Infinities and NaN stay what they are.

    Args:
        x: [...] f32.
        noise: [...] uint32, uniform; the lower 16 bits are used.

    Example:
        >>> x = jnp.float32(1 + 2**-8)  # half way between 1 and the next bf16, 1 + 2**-7
        >>> [float(stochastic_round(x, jnp.uint32(n))) for n in (0, 2**15)]
        [1.0, 1.0078125]
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (noise & jnp.uint32(0xFFFF))
    rounded = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 that scatters all bits (the "lowbias32" constants of C. Wellons' hash prospector)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 noise of a shape from one word: a hash of (key, position).

    Threefry would cost more than Adam itself.  A hash of the position fuses into the update, needs no memory, and gives
    the same bits however the array is sharded.
    """
    position = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return _mix(_mix(position ^ key) + key)


@register("optim.adam_bf16")
@dataclass(frozen=True)
class AdamBf16:
    """Adam (Kingma & Ba 2015) with both moments stored in bf16, rounded stochastically; masters stay f32.

    Each update is computed in f32 from the stored moments, so only the stored values are rounded.  Rounding to nearest
    would stop the second moment: one step moves it by at most 1 - b2 = 0.1 % of itself, and bf16 values lie 0.4 to
    0.8 % apart.  Stochastic rounding is unbiased; what it adds is noise of a few per cent in the second moment, half
    of that in the step size.  The noise is a function of (seed, step, leaf, position): a rerun repeats it exactly.

    Args:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        clip: largest global norm of the gradient; None for no clipping.
        seed: of the rounding noise.

    Example:
        >>> state = AdamBf16(clip=None).build().init({"w": jnp.zeros(3)})
        >>> state.nu["w"].dtype
        dtype(bfloat16)
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip: float | None = 1.0
    seed: int = 0

    def build(self) -> optax.GradientTransformation:
        adam = optax.GradientTransformation(_init, self._update)
        return adam if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), adam)

    def _update(self, grads: Any, state: optax.ScaleByAdamState, params: Any = None):
        count = optax.safe_increment(state.count)
        t = count.astype(jnp.float32)
        bias1, bias2 = 1 - self.b1**t, 1 - self.b2**t
        step_key = _mix(count.astype(jnp.uint32) + jnp.uint32(self.seed % 2**32) * jnp.uint32(0x9E3779B9))

        def leaf(path, g, mu, nu):
            g = g.astype(jnp.float32)
            mu = self.b1 * mu.astype(jnp.float32) + (1 - self.b1) * g
            nu = self.b2 * nu.astype(jnp.float32) + (1 - self.b2) * g * g
            direction = (mu / bias1) / (jnp.sqrt(nu / bias2) + self.eps)
            bits = noise(step_key ^ jnp.uint32(zlib.crc32(jax.tree_util.keystr(path).encode())), g.shape)
            return direction, stochastic_round(mu, bits), stochastic_round(nu, bits >> 16)

        out = jax.tree_util.tree_map_with_path(leaf, grads, state.mu, state.nu)
        pick = lambda n: jax.tree.map(lambda _, o: o[n], grads, out)  # noqa: E731
        return pick(0), optax.ScaleByAdamState(count, pick(1), pick(2))


def halved(optimizer: Any) -> AdamBf16 | None:
    """The same optimiser with both moments in bf16, or None if there is no such form.

    Example:
        >>> halved(Adam(eps=1e-6)).eps
        1e-06
    """
    if not isinstance(optimizer, Adam) or optimizer.lr_factors:
        return None
    return AdamBf16(optimizer.b1, optimizer.b2, optimizer.eps, optimizer.clip)


def _init(params: Any) -> optax.ScaleByAdamState:
    zeros = lambda: jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), jnp.bfloat16), params)  # noqa: E731
    return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros(), zeros())
