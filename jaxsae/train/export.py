"""Any checkpoint of a run as a dictionary, ready for `jaxsae.save` in any format."""

import os

import jax
import jax.numpy as jnp

from jaxsae.config import from_dict
from jaxsae.errors import CheckpointError
from jaxsae.io.checkpoint import Checkpoints
from jaxsae.recipes import Recipe
from jaxsae.sae import SAE, Meta
from jaxsae.train.run_dir import RunDir


def export(run: str | os.PathLike, step: int | None = None, form: str = "auto") -> SAE:
    """The dictionary that a run had after a step.

    Args:
        run: a run directory.
        step: one of its checkpoints; None for the newest sound one.
        form: inference form, see `Recipe.export`.

    Raises:
        CheckpointError: no such run or step (the ones there are, are listed), or a damaged checkpoint.
        ConfigError: the method has no such form.

    Example:
        >>> import jaxsae
        >>> sae = export("runs/topk", step=2000)  # doctest: +SKIP
        >>> jaxsae.save(sae, "shared/topk", format="sae_lens")  # doctest: +SKIP
    """
    folder = RunDir(run)
    if not folder.checkpoints.is_dir():
        raise CheckpointError(f"there are no checkpoints in {str(folder.path)!r}; expected a run of `jaxsae train`")
    with Checkpoints(folder.checkpoints, create=False) as kept:
        steps = kept.steps()
        if not steps or (step is not None and step not in steps):
            raise CheckpointError(f"{str(folder.path)!r} has no checkpoint of step {step}; it has {steps or 'none'}")
        recipe = from_dict(kept.meta(steps[-1] if step is None else step).config["recipe"], Recipe)
        sample = {"x": jax.ShapeDtypeStruct((2, recipe.d_in), jnp.float32)}
        restored = kept.restore(jax.eval_shape(recipe.init, jax.random.key(0), sample), step)
    if restored is None:
        raise CheckpointError(f"{str(folder.path)!r} has no sound checkpoint to export")
    return recipe.export(restored.state, form, Meta().with_extra(step=int(restored.state.step)))
