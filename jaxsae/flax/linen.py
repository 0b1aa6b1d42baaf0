"""A dictionary as a linen module, and one at a named site of a linen model."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen

from jaxsae.errors import ConfigError, closest
from jaxsae.flax.site import At, Slots, Through, check_at, fresh, parts_of, reconstruct, run_at, trained
from jaxsae.sae import SAE, Codes

#: Leaves that are not trained: thresholds, k, and everything of a frozen dictionary.
CONSTANTS = "constants"


class LinenSAE(linen.Module):
    """An SAE as a linen module: `params` holds what is trained, the collection `constants` what is not.

    Attributes:
        slots: the static half of an SAE.
        frozen: `init` puts every leaf into `constants`, where no optimiser looks.
    """

    slots: Slots
    frozen: bool = False

    def setup(self) -> None:
        if not self.is_initializing():
            return
        leaves = fresh(self.slots, self.make_rng("params"))
        moving = () if self.frozen else trained(self.slots.join(leaves))
        for name, leaf in leaves.items():
            if name in moving:
                self.param(name, lambda _, leaf=leaf: leaf)
            else:
                self.variable(CONSTANTS, name, lambda leaf=leaf: leaf)

    def sae(self) -> SAE:
        """The SAE of the variables at hand."""
        own = linen.unbox(self.variables)
        return self.slots.join({**own.get(CONSTANTS, {}), **own.get("params", {})})

    def encode(self, x: jax.Array) -> Codes:
        """`SAE.encode`."""
        return self.sae().encode(x)

    def decode(self, codes: Codes, like: jax.Array | None = None) -> jax.Array:
        """`SAE.decode`."""
        return self.sae().decode(codes, like=like)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`SAE.__call__`."""
        return self.sae()(x)


class LinenSpliced(linen.Module):
    """A linen model with an SAE at one site; call it as the model.

    Attributes:
        model: the model.
        coder: the dictionary.
        site: path of a submodule inside the model.
        at: on its output, on its input, or in its place.
        through: (SAE, activation) -> activation.
    """

    model: linen.Module
    coder: LinenSAE
    site: str
    at: At = "output"
    through: Through = reconstruct

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        target, root, seen = parts_of(self.site), self.model.path, set()
        sae = self.coder.sae()  # read here: inside the model it may be out of scope, as under nn.remat

        def intercept(inner: Any, a: tuple, kw: dict[str, Any], context: Any) -> Any:
            path = context.module.path
            if context.method_name != "__call__" or path[: len(root)] != root:
                return inner(*a, **kw)
            seen.add(path[len(root) :])
            if path[len(root) :] != target:
                return inner(*a, **kw)
            return run_at(self.at, lambda x: self.through(sae, x), inner, a, kw)

        with linen.intercept_methods(intercept):
            out = self.model(*args, **kwargs)
        if target not in seen:
            names = ["/".join(path) for path in seen if path]
            raise ConfigError(f"the model called no submodule {self.site!r}{closest(self.site, names)}")
        return out


def to_linen(sae: SAE, *, frozen: bool = False) -> tuple[LinenSAE, dict[str, dict[str, jax.Array]]]:
    """The module and its variables, under the names the SAE has.

    Args:
        sae: any dictionary.
        frozen: put every leaf into the collection `constants`, so that it is not trained.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsae.sae import make_sae
        >>> sae = make_sae({"W_enc": jnp.eye(2), "b_enc": jnp.zeros(2), "W_dec": jnp.eye(2), "b_dec": jnp.zeros(2)})
        >>> module, variables = to_linen(sae)
        >>> module.apply(variables, jnp.array([1.0, -2.0])).tolist()
        [1.0, 0.0]
    """
    moving = () if frozen else trained(sae)
    split = {
        "params": {n: a for n, a in sae.params.items() if n in moving},
        CONSTANTS: {n: a for n, a in sae.params.items() if n not in moving},
    }
    return LinenSAE(Slots.of(sae), frozen), {name: leaves for name, leaves in split.items() if leaves}


def from_linen(module: LinenSAE, variables: Mapping[str, Mapping[str, Any]]) -> SAE:
    """The SAE of a module and its own variables (those of an enclosing model have them under its name).

    Raises:
        ConfigError: an array is missing or has another shape.
    """
    own = linen.unbox(dict(variables))
    return module.slots.join({**own.get(CONSTANTS, {}), **own.get("params", {})})


def splice_linen(
    model: linen.Module,
    variables: Mapping[str, Any],
    site: str,
    sae: SAE,
    *,
    at: At = "output",
    through: Through = reconstruct,
    frozen: bool = False,
) -> tuple[LinenSpliced, dict[str, Any]]:
    """The model with an SAE at a named site, and the variables of both.  Model and variables stay as they were.

    Args:
        model: any linen model.  Layers under `nn.scan` share a path, and layers under `nn.jit` a trace: they cannot be
            told apart, and an SAE at one of them sits at all.
        variables: its variables; they come back under the name `model`, beside the SAE's under `coder`.
        site: path of a submodule, e.g. "block_1/mlp", as in its parameters' names.
        sae: any dictionary of the width found there.
        at: "output", "input", or "instead" (a transcoder in place of the submodule).
        through: what happens there, (sae, activation) -> activation; default: the reconstruction.
        frozen: do not train the SAE.

    Raises:
        ConfigError: unknown `at`; when called: no such submodule, or activations of another width.

    Example:
        >>> spliced, both = splice_linen(model, variables, "block_1/mlp", sae)   # doctest: +SKIP
        >>> logits = spliced.apply(both, tokens)                                 # doctest: +SKIP
    """
    check_at(at)
    coder, own = to_linen(sae, frozen=frozen)
    both = {
        name: {part: leaves[name] for part, leaves in (("model", variables), ("coder", own)) if name in leaves}
        for name in sorted({*variables, *own})
    }
    return LinenSpliced(model, coder, site, at, through), both
