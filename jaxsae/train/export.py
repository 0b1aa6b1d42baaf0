"""Any checkpoint of a run as a dictionary, ready for `jaxsae.save` in any format."""

import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxsae import parallel
from jaxsae.config import from_dict
from jaxsae.errors import CheckpointError, ConfigError
from jaxsae.io.checkpoint import Checkpoints
from jaxsae.recipes import Programs, Recipe
from jaxsae.sae import SAE, Meta
from jaxsae.train.fleet import Fleet
from jaxsae.train.run_dir import RunDir


def export(
    run: str | os.PathLike,
    step: int | None = None,
    form: str = "auto",
    member: int | None = None,
    mesh: Mesh | None = None,
) -> SAE:
    """The dictionary that a run had after a step.

    Args:
        run: a run directory, or its URL.
        step: one of its checkpoints; None for the newest sound one.
        form: inference form, see `Recipe.export`.
        member: which run of a sweep; None for a run that is none.
        mesh: devices the state is read onto, each its part; None for the default device.  A mesh that the run was
            trained on has room for it.

    Raises:
        CheckpointError: no such run or step (the ones there are, are listed), or a damaged checkpoint.
        ConfigError: the method has no such form, or a sweep without a member (or the reverse).

    Example:
        >>> import jaxsae
        >>> sae = export("runs/topk", step=2000)  # doctest: +SKIP
        >>> jaxsae.save(sae, "shared/topk", format="sae_lens")  # doctest: +SKIP
    """
    folder = RunDir(run)
    if not folder.holds("checkpoints"):
        raise CheckpointError(f"there are no checkpoints in {str(folder)!r}; expected a run of `jaxsae train`")
    with Checkpoints(folder.checkpoints, create=False) as kept:
        steps = kept.steps()
        if step is not None and step not in steps:
            raise CheckpointError(f"{str(folder)!r} has no checkpoint of step {step}; it has {steps or 'none'}")
        meta = kept.newest_meta() if step is None else kept.meta(step)
        if meta is None:
            found = f"those of steps {steps}, all damaged" if steps else "none"
            raise CheckpointError(f"expected a checkpoint in {str(folder)!r} that can be read, found {found}")
        recipe = from_dict(meta.config["recipe"], Recipe | Fleet)
        runs = recipe.size if isinstance(recipe, Fleet) else 0
        if (member is not None) if not runs else (member is None or not 0 <= member < runs):
            wanted = f"a member from 0 to {runs - 1} of the sweep" if runs else "no member, it is a single run"
            raise ConfigError(f"{str(folder)!r}: expected {wanted}, found {member}")
        rows = 2 if mesh is None else 2 * mesh.shape["data"]
        sample: Any = {"x": jax.ShapeDtypeStruct((rows, recipe.d_in), jnp.float32)}
        restored = kept.restore(Programs(recipe, mesh, sample).abstract, step)
    if restored is None:
        raise CheckpointError(f"{str(folder)!r} has no sound checkpoint to export")
    provenance = Meta().with_extra(step=int(restored.state.step))
    with parallel.use(mesh):
        if member is None:
            return recipe.export(restored.state, form, provenance)
        return recipe.export(restored.state, member, form, meta=provenance)
