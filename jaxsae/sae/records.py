"""The records that flow through one step, and the context it runs in.

NamedTuples hold arrays (they are pytrees); `Want` is static and decides, at trace time, what is computed at all.
"""

import zlib
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax

from jaxsae.sae.codes import Codes, SparseCodes
from jaxsae.typing import Params, PyTree


class Rows(NamedTuple):
    """What a View returns: one training row per entry."""

    x: jax.Array  # [B, D] input
    y: jax.Array  # [B, E] what is to be reconstructed
    mask: jax.Array  # [B] f32, 1 = counts, 0 = padding
    extra: PyTree = None  # whatever a term or encoder asks for by name


class Want(NamedTuple):
    """Static union of what terms, levels and trackers need from the encoding."""

    pre: bool = False  # somebody reads the dense [B, S] pre-activations
    k_aux: int = 0  # a second selection, among dead latents
    ranks: int = 0  # a ranked list longer than the codes


class Pre(NamedTuple):
    """What an Encoder hands to a Selector.  For most encoders score and value are one array."""

    score: jax.Array  # [B, S] what selection ranks or tests
    value: jax.Array  # [B, S] what a selected latent is worth
    x: jax.Array  # [B, D] the input as the encoder saw it, centred


class Selection(NamedTuple):
    """What an encoding returns."""

    codes: Codes
    exact: Any = True  # [] bool: False = the capacity was too small, the step recomputes on the dense path
    kept_min: jax.Array | None = None  # [] or [S], score units: the smallest kept score (NaN: nothing was kept)
    ranked: SparseCodes | None = None  # longer than codes, sorted by score, descending
    aux: SparseCodes | None = None  # the best among dead latents
    aux_rows: jax.Array | None = None  # [B, E] those decoded, where the levels did so in passing
    pre: Pre | None = None  # only if wanted
    theta: jax.Array | None = None  # [S] learned threshold
    near: jax.Array | None = None  # [B] share of latents so near their learned threshold that it gets a gradient


class Out(NamedTuple):
    """All that terms and trackers may read."""

    rows: Rows
    p: Params
    sel: Selection
    err: jax.Array  # [B, E] residual of the main reconstruction, y - yhat
    level_sse: jax.Array  # [B, R] sum over E of the squared residual, one column per level
    yhat: jax.Array  # [B, E]
    D: Any  # the dictionary member; out.D.atoms(out.p) are its atoms
    levels: Any = None  # the levels member: weights and shares of the nested reconstructions
    readout: Any = None  # the readout member; out.readout.base(out.p, out.rows.x) is added to the decoded codes


@dataclass(frozen=True)
class Ctx:
    """Per-step context.  `train` is a Python bool (static); everything else may be traced.  Never crosses a jit."""

    step: Any
    key: Any
    hyper: dict[str, Any]
    track: dict[str, Any]
    frozen: PyTree = ()
    rows: Any = None  # Rows, once the view has run
    train: bool = True
    pool: Any = None  # (ctx) -> [S] bool: whom the auxiliary selection draws from; None: the dead

    def rng(self, name: str) -> jax.Array:
        """The random key of this step for one named purpose."""
        return jax.random.fold_in(self.key, zlib.crc32(name.encode()) & 0x7FFFFFFF)

    def dead(self) -> jax.Array:
        """[S] bool, as known before this batch: latents that the auxiliary selection may use.

        Those silent for at least `dead_after_tokens`, unless a term of the recipe brings a `pool` of its own.
        """
        if self.pool is not None:
            return self.pool(self)
        return self.track["fired"]["since"] >= self.hyper["dead_after_tokens"]

    def with_rows(self, rows: Rows) -> "Ctx":
        return replace(self, rows=rows)
