"""A dictionary on devices: its arrays go one at a time, each device getting only its part."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh

from jaxsae.parallel import sharding
from jaxsae.sae import SAE


def place(sae: SAE, mesh: Mesh | None = None) -> SAE:
    """The dictionary with its arrays, numpy's or jax's, on a mesh or on the default device.

    Without a mesh on CPU the memory that was read into becomes the array's own.  On a mesh every array goes where its
    axis letters say (latents along the axis `latent`), each device getting its part only; an axis that does not divide
    evenly is replicated.  Arrays that lie there already are not moved.

    Args:
        sae: the dictionary.
        mesh: with the axis `latent` (`jaxsae.parallel.make_mesh`); None for the default device.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsae.parallel import make_mesh
        >>> from jaxsae.sae import make_sae
        >>> eye = jnp.eye(2)
        >>> sae = make_sae({"W_enc": eye, "b_enc": jnp.zeros(2), "W_dec": eye, "b_dec": jnp.zeros(2)})
        >>> place(sae, make_mesh(1, 1, jax.devices()[:1])).W_dec.sharding.is_fully_replicated
        True
    """
    letters = letters_of(sae)
    params: dict[str, Any] = dict(sae.params)
    for name in list(params):
        array = params.pop(name)
        params[name] = jax.device_put(
            array, None if mesh is None else sharding(mesh, _fitting(mesh, letters, name, array))
        )
        del array
    return replace(sae, params=params)


def _fitting(mesh: Mesh, letters: Mapping[str, str], name: str, array: Any) -> str:
    """The letters of a leaf, "." for an axis that the mesh does not divide."""
    ways = mesh.shape.get("latent", 1)
    return "".join(c if n % ways == 0 else "." for c, n in zip(letters.get(name, ""), array.shape, strict=False))


def letters_of(sae: SAE) -> Mapping[str, str]:
    """Axis letters of every array, as the slots declare them."""
    return {**sae.norm.axes, **sae.encoder.axes, **sae.dictionary.axes, **sae.readout.axes}
