"""The same coder in the form that a recipe trains: gated, tied, with learned thresholds.

A frozen coder has one affine encoder, a threshold per latent and a matrix of atoms.  Three trained forms are others of
the same function, so training can go on from any such coder; where they are not, the reason is said.
"""

from typing import Any

import jax.numpy as jnp

from jaxsae.errors import ConfigError
from jaxsae.sae import SAE, Affine, Gated, JumpRelu, PreSelect, Rank, Relu, Threshold, TiedAffine
from jaxsae.typing import Params

#: How far an encoder may be from a multiple of its atom, relative to its length, and still count as tied (bf16 files).
TIE = 1e-2


def gated(recipe: Any, sae: SAE) -> SAE:
    """An affine coder with thresholds as a gated one, where the recipe's encoder is gated.

        W_enc, b_enc, theta      becomes      r_mag = 0    b_mag = b_enc    b_gate = b_enc - theta

    q + b_gate > 0 is q + b_enc > theta, and the magnitude q + b_mag is the pre-activation.  A trained gated coder that
    was exported gets its r_mag into W_enc: the same function, another start for r_mag.

    Raises:
        ConfigError: a threshold that is not finite, which would leave a gate that no gradient can open.
    """
    ours: Any = getattr(recipe.encoder, "encoder", None)
    theirs: Any = getattr(sae.encoder, "encoder", None)
    selector: Any = getattr(sae.encoder, "selector", None)
    if not isinstance(ours, Gated) or not isinstance(theirs, Affine) or not _by_threshold(selector):
        return sae
    leaves = dict(sae.params)
    b = leaves.pop("b_enc")
    theta = leaves.pop("threshold", jnp.zeros_like(b))
    _finite(recipe, theta)
    leaves |= {"b_gate": b - theta, "b_mag": b, "r_mag": jnp.zeros_like(b)}
    encode = PreSelect(Gated(theirs.d_in, theirs.d_sae, theirs.b_pre), Relu())
    return sae.replace(params=leaves, encoder=encode)  # type: ignore[attr-defined]


def tied(recipe: Any, sae: SAE, leaves: Params) -> Params:
    """Leaves with one matrix for both ways, where the recipe's encoder is tied.

    Encoder column and atom of a latent must point the same way.  Where their lengths differ the latent is rescaled so
    that both are sqrt(||w_j|| ||d_j||) long, which changes the unit of its code and no reconstruction.

    Raises:
        ConfigError: encoders that are no multiples of their atoms; atoms that would not have norm 1 where the recipe
            keeps them so; different scales under a selection by rank, which they would reorder.
    """
    if not isinstance(getattr(recipe.encoder, "encoder", None), TiedAffine) or "W_dec" not in leaves:
        return leaves
    W, atoms = leaves["W_enc"].astype(jnp.float32), leaves["W_dec"].astype(jnp.float32).T
    long, short = jnp.linalg.norm(W, axis=0), jnp.linalg.norm(atoms, axis=0)
    scale = jnp.sqrt(jnp.where(long > 0, short / jnp.where(long > 0, long, 1.0), 1.0))
    scaled = W * scale[None]
    apart = float(jnp.max(jnp.abs(scaled - atoms / jnp.where(scale > 0, scale, 1.0)[None])) / jnp.max(jnp.abs(scaled)))
    if apart > TIE:
        raise ConfigError(
            f"recipe {recipe.name!r} ties its encoder to its atoms, the SAE's are no multiples of each other (they "
            f"differ by {apart:.2g} of the largest entry); choose a recipe with an encoder of its own"
        )
    norms = jnp.linalg.norm(scaled, axis=0)
    if recipe.dictionary.unit_norm and float(jnp.max(jnp.abs(norms - 1))) > TIE:
        raise ConfigError(
            f"recipe {recipe.name!r} keeps atoms at norm 1 in one matrix for both ways, the SAE's would have norms "
            f"from {float(norms.min()):.3g} to {float(norms.max()):.3g}; choose a recipe with an encoder of its own"
        )
    ranks = isinstance(getattr(sae.encoder, "selector", None), Rank)
    if ranks and float(scale.max() / scale.min()) - 1 > TIE:
        raise ConfigError(
            f"recipe {recipe.name!r} would rescale latents by {float(scale.min()):.3g} to {float(scale.max()):.3g} to "
            "tie them, which reorders their ranks; choose a recipe with an encoder of its own"
        )
    own: Params = {name: leaves[name] * scale for name in ("b_enc", "threshold") if name in leaves}
    return {**{n: a for n, a in leaves.items() if n != "W_dec"}, **own, "W_enc": scaled}


def learned(recipe: Any, theirs: Any, leaves: Params) -> bool:
    """Whether the recipe learns its thresholds and the SAE has such; puts them, or their logarithms, into the leaves.

    Raises:
        ConfigError: a threshold that is not finite, or not positive where its logarithm is trained.
    """
    ours: Any = getattr(recipe.encoder, "selector", None)
    if not isinstance(ours, JumpRelu) or not _by_threshold(theirs):
        return False
    theta = leaves.get("threshold", jnp.zeros(recipe.d_sae))
    _finite(recipe, theta)
    if ours.log and float(theta.min()) <= 0:
        raise ConfigError(
            f"recipe {recipe.name!r} trains the logarithm of its thresholds, the SAE's go down to "
            f"{float(theta.min()):.3g}; train them as they are (log_threshold=False)"
        )
    leaves["log_threshold" if ours.log else "threshold"] = jnp.log(theta) if ours.log else theta
    return True


def _by_threshold(selector: Any) -> bool:
    """Codes relu(pre) where pre exceeds a threshold: what gates and jumps can be."""
    return isinstance(selector, Relu) or (isinstance(selector, Threshold) and not selector.signed and selector.rectify)


def _finite(recipe: Any, theta: Any) -> None:
    if not bool(jnp.all(jnp.isfinite(theta))):
        raise ConfigError(
            f"recipe {recipe.name!r} learns when a latent is on, but {int(jnp.sum(~jnp.isfinite(theta)))} thresholds "
            "of the SAE are not finite and could not move; put numbers in their place"
        )
