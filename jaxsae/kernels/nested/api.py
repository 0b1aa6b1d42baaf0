"""Squared errors of a few nested reconstructions, from lists whose entries belong to levels."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxsae import parallel
from jaxsae.errors import ConfigError
from jaxsae.kernels._dispatch import Available, Implementation, axes, choose
from jaxsae.kernels.nested import reference, xla, xla_rows


def _alone(shape, dtype):
    """Blocks of rows one after another are no way to work where the rows lie on several devices."""
    return "works on one device, this is a mesh" if parallel.sizes() else None


def _few_levels(shape):
    """Each level costs `xla_rows` a product; the walk passes all of them on its way."""
    most = xla_rows.MOST_LEVELS
    return f"takes at most {most} levels, not {shape['R']}" if shape["R"] > most else None


IMPLEMENTATIONS: Available = {
    "xla_rows": Implementation(xla_rows.nested, ("cpu",), _alone, _few_levels),
    "xla": xla.nested,
    "reference": reference.nested,
}


def nested(
    values: jax.Array,
    indices: jax.Array,
    level: jax.Array,
    W: jax.Array,
    e0: jax.Array,
    main: jax.Array,
    levels: int,
    *,
    in_order: bool = False,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The residuals of R reconstructions, each of which uses what the one before it uses and more.

        e_r[b] = e0[b] - sum over j with level[b, j] <= r of values[b, j] W[indices[b, j]]        r = 0..R-1

    The levels of Matryoshka prefixes, multi-TopK and HierarchicalTopK.  `path` has those after every single entry.

    Args:
        values: [B, K] f32; 0 means absent.
        indices: [B, K] int32, every one in 0..S-1; repeated indices add.
        level: [B, K] int32, the first level that uses the entry; R or more for none.
        W: [S, E] dictionary, f32 or bf16; sums are f32.
        e0: [B, E] residual before the first entry.
        main: [B] int32 in 0..R-1: the level whose residual is wanted in full.
        levels: R, at least 1.
        in_order: the levels of each row never decrease along its list, which spares XLA's form a sort.
        implementation: None (best here), "xla", "xla_rows" (CPU, up to 8 levels) or "reference".

    Returns:
        sse [B, R] f32, the squared norm (sum over E) of every residual; and e_main [B, E] f32.

    Raises:
        ConfigError: shapes that do not belong together, no level, or an unknown implementation.

    Example:
        >>> values, indices, level = jnp.array([[3.0, 1.0]]), jnp.array([[1, 0]]), jnp.array([[1, 0]])
        >>> sse, e = nested(values, indices, level, jnp.eye(2), jnp.array([[1.0, 5.0]]), jnp.array([1]), 2)
        >>> sse.tolist(), e.tolist()
        ([[25.0, 4.0]], [[0.0, 2.0]])
    """
    values, indices, level, W, e0, main = map(jnp.asarray, (values, indices, level, W, e0, main))
    if levels < 1:
        raise ConfigError(f"nested: expected at least one level, found {levels}")
    lists = {"values": (values, "BK"), "indices": (indices, "BK"), "level": (level, "BK")}
    shape = axes("nested", **lists, W=(W, "SE"), e0=(e0, "BE"), main=(main, "B"))
    run = choose("nested", implementation, IMPLEMENTATIONS, {**shape, "R": levels}, W.dtype)
    return partial(run, levels=levels, in_order=in_order)(values, indices, level, W, e0, main)
