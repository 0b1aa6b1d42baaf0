"""A dictionary as an NNX module, and one at a named site of an NNX model."""

from typing import Any

import jax
from flax import nnx

from jaxsae.errors import ConfigError, closest
from jaxsae.flax.site import At, Slots, Through, check_at, parts_of, reconstruct, run_at, trained
from jaxsae.sae import SAE, Codes


class Constant(nnx.Variable):
    """A leaf that is not trained: a threshold, k, and every leaf of a frozen dictionary."""


class NnxSAE(nnx.Module):
    """An SAE as an NNX module: leaves are attributes under the SAE's names, `nnx.Param` where they are trained."""

    def __init__(self, sae: SAE, frozen: bool = False) -> None:
        self.slots = Slots.of(sae)
        moving = () if frozen else trained(sae)
        for name, leaf in sae.params.items():
            setattr(self, name, nnx.Param(leaf) if name in moving else Constant(leaf))

    def sae(self) -> SAE:
        """The SAE of the present values."""
        return self.slots.join({n: v[...] for n, v in vars(self).items() if isinstance(v, nnx.Variable)})

    def encode(self, x: jax.Array) -> Codes:
        """`SAE.encode`."""
        return self.sae().encode(x)

    def decode(self, codes: Codes, like: jax.Array | None = None) -> jax.Array:
        """`SAE.decode`."""
        return self.sae().decode(codes, like=like)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`SAE.__call__`."""
        return self.sae()(x)


class NnxSpliced(nnx.Module):
    """A submodule with an SAE on its output, on its input, or in its place."""

    def __init__(self, inner: nnx.Module, coder: NnxSAE, at: At = "output", through: Through = reconstruct) -> None:
        self.inner, self.coder, self.at, self.through = inner, coder, at, through

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return run_at(self.at, lambda x: self.through(self.coder.sae(), x), self.inner, args, kwargs)


def to_nnx(sae: SAE, *, frozen: bool = False) -> NnxSAE:
    """The SAE as an NNX module.

    Args:
        sae: any dictionary.
        frozen: make every leaf a `Constant`, so that `nnx.grad` and `nnx.Optimizer(wrt=nnx.Param)` leave it alone.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsae.sae import make_sae
        >>> sae = make_sae({"W_enc": jnp.eye(2), "b_enc": jnp.zeros(2), "W_dec": jnp.eye(2), "b_dec": jnp.zeros(2)})
        >>> to_nnx(sae)(jnp.array([1.0, -2.0])).tolist()
        [1.0, 0.0]
    """
    return NnxSAE(sae, frozen)


def from_nnx(module: NnxSAE) -> SAE:
    """The SAE with the module's present values.

    Raises:
        ConfigError: a value has another shape.
    """
    return module.sae()


def splice_nnx(
    model: Any, site: str, sae: SAE, *, at: At = "output", through: Through = reconstruct, frozen: bool = False
) -> Any:
    """A copy of an NNX model with an SAE at a named site; the model itself stays as it was.

    Args:
        model: any NNX model.
        site: path of a submodule, e.g. "blocks/1/mlp"; numbers are positions in a list.
        sae: any dictionary of the width found there.
        at: "output", "input", or "instead" (a transcoder in place of the submodule).
        through: what happens there, (sae, activation) -> activation; default: the reconstruction.
        frozen: do not train the SAE.

    Returns:
        the copy; its submodule at `site` is an `NnxSpliced` with attributes `inner` and `coder`.

    Raises:
        ConfigError: unknown `at` or no such submodule; when called: activations of another width.

    Example:
        >>> spliced = splice_nnx(model, "blocks/1/mlp", sae)   # doctest: +SKIP
        >>> spliced.blocks[1].mlp.coder.W_dec                  # doctest: +SKIP
    """
    check_at(at)
    copy = nnx.clone(model)
    *above, last = parts_of(site) or ("",)
    parent = copy
    for part in above:
        parent = _child(parent, part, site, model)
    inner = _child(parent, last, site, model)
    spliced = NnxSpliced(inner, NnxSAE(sae, frozen), at, through)
    if last.isdigit() and hasattr(parent, "__setitem__"):
        parent[int(last)] = spliced
    else:
        setattr(parent, last, spliced)
    return copy


def _child(parent: Any, name: str, site: str, model: Any) -> Any:
    if name.isdigit() and hasattr(parent, "__getitem__"):
        found = parent[int(name)] if int(name) < len(parent) else None
    else:
        found = getattr(parent, name, None)
    if found is None or isinstance(found, nnx.Variable):
        names = [
            "/".join(map(str, path)) for path, found in nnx.iter_graph(model) if path and isinstance(found, nnx.Module)
        ]
        raise ConfigError(f"the model has no submodule {site!r}{closest(site, names)}")
    return found
