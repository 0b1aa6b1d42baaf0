"""What the linen and the NNX bridge share: the static half of an SAE, and how one sits at a site."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxsae.errors import ConfigError
from jaxsae.sae import SAE, Rows, check_shapes
from jaxsae.typing import Params

#: Where an SAE sits at a submodule: on what it returns, on what it is given, or in its place (a transcoder).
At = Literal["output", "input", "instead"]
#: What happens there: (SAE, activation) -> activation.
Through = Callable[[SAE, jax.Array], jax.Array]


@dataclass(frozen=True)
class Slots:
    """The static half of an SAE: hashable, as the attributes of Flax modules have to be."""

    members: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, sae: SAE) -> "Slots":
        """Everything but the arrays."""
        return cls(tuple((f.name, getattr(sae, f.name)) for f in fields(sae) if f.name != "params"))

    def join(self, params: Params) -> SAE:
        """An SAE of these slots.

        Raises:
            ConfigError: an array is missing or has another shape.
        """
        sae = SAE(params, **dict(self.members))
        check_shapes(sae)
        return sae


def trained(sae: SAE) -> list[str]:
    """Names of the leaves that a gradient can move: not those a slot declares as fixed, and no integers."""
    fixed = {*sae.encoder.fixed, *sae.dictionary.fixed, *sae.norm.fixed}
    return [n for n, a in sae.params.items() if n not in fixed and jnp.issubdtype(a.dtype, jnp.inexact)]


def fresh(slots: Slots, key: jax.Array) -> Params:
    """Random leaves for these slots, as a recipe would draw them before it has seen data."""
    sae = SAE({}, **dict(slots.members))
    k_x, k_y, k_dict, k_enc = jax.random.split(key, 4)
    x, y = jax.random.normal(k_x, (64, sae.d_in)), jax.random.normal(k_y, (64, sae.d_out))
    rows = Rows(x, x if sae.d_in == sae.d_out else y, jnp.ones(len(x)))
    p = {**sae.norm.init(rows), **sae.readout.init(rows)}
    p |= sae.dictionary.init(k_dict, rows, p)
    p |= sae.encoder.init(k_enc, rows, p, sae.dictionary)
    cap = getattr(getattr(sae.encoder, "selector", None), "cap", None)
    return p if cap is None else {**p, "k": jnp.int32(cap)}


def reconstruct(sae: SAE, x: jax.Array) -> jax.Array:
    """The reconstruction, in the dtype of the activation it replaces."""
    return sae(x).astype(x.dtype)


def on_first(f: Callable[[jax.Array], jax.Array], value: Any) -> Any:
    """f of an activation, or of the first entry of a tuple of outputs (the rest is caches and attention weights)."""
    if isinstance(value, tuple) and value:
        return (f(value[0]), *value[1:])
    return f(value)


def run_at(at: At, f: Callable[[jax.Array], jax.Array], inner: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Calls a submodule with f on its output, on its first argument, or in its place."""
    if at == "output":
        return on_first(f, inner(*args, **kwargs))
    if not args:
        raise ConfigError(f"an SAE at={at!r} expects the activation as first positional argument, found only keywords")
    return inner(f(args[0]), *args[1:], **kwargs) if at == "input" else f(args[0])


def check_at(at: str) -> None:
    """Refuses an unknown place."""
    if at not in ("output", "input", "instead"):
        raise ConfigError(f"at: expected 'output', 'input' or 'instead', found {at!r}")


def parts_of(site: str) -> tuple[str, ...]:
    """The names along a path written with slashes or dots: "blocks/1/mlp" or "blocks.1.mlp"."""
    return tuple(part for part in site.replace(".", "/").split("/") if part)
