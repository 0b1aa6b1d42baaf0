"""Nested levels: reconstructions from the first latents (`ByPrefix`, `RandomPrefixes`) or the best-ranked (`ByRank`).

Each is a point on one path of residuals, e_j = e_{j-1} - v_j d_j, in order of latent index or of rank.  Short lists
are decoded once for all levels (`kernels.nested`); long lists and dense codes are decoded block by block in dense
products.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae import kernels
from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.kernels.sparse_decode.xla import dense_ratio
from jaxsae.sae.codes import DenseCodes, SparseCodes
from jaxsae.sae.levels import check_nested, check_one_matrix, check_weights
from jaxsae.sae.records import Ctx, Out

#: Most blocks into which dense codes are cut when prefix lengths are known only while the program runs.
BLOCKS = 16


@register("levels.by_prefix")
@dataclass(frozen=True)
class ByPrefix:
    """Level r uses the first `lengths[r]` latents (Matryoshka, Bussmann et al. 2025, 2503.17547).

    The selection has been made once, over all latents.  `bias_level` adds a level that uses none.  The order of
    latents has a meaning: it is the order of the levels.

    Args:
        lengths: increasing; the last one is d_sae.
        bias_level: count the reconstruction by the readout alone as a level too, the first.
        weights: of the levels, the bias level included; () for the mean.
    """

    lengths: tuple[int, ...]
    bias_level: bool = False
    weights: tuple[float, ...] = ()
    ranks = 0
    ordered = True

    @classmethod
    def example(cls) -> "ByPrefix":
        return cls((4, 16, 32), bias_level=True, weights=(0.5, 1.0, 1.0, 2.0))

    def review(self, recipe: Any) -> tuple[str, ...]:
        d_sae = recipe.d_sae
        check_nested("ByPrefix", self.lengths, d_sae, "prefix lengths", ())
        if self.lengths[-1] != d_sae:
            raise ConfigError(f"ByPrefix: the last prefix must be d_sae = {d_sae}, found {self.lengths[-1]}")
        check_weights("ByPrefix", len(self.lengths) + self.bias_level, self.weights)
        check_one_matrix("ByPrefix", recipe.dictionary)
        return ()

    def share(self, ctx: Ctx) -> jax.Array:
        """[S] share of the levels that use each latent."""
        return _share(jnp.asarray(self.lengths), self.lengths[-1], self.bias_level)

    def read(self, out: Out, e0: jax.Array, ctx: Ctx) -> tuple[jax.Array, jax.Array]:
        """level_sse [B, R] and the residual of the full reconstruction [B, E]; arguments as `One.read`."""
        codes, W = out.sel.codes, out.D.atoms(out.p)
        if isinstance(codes, SparseCodes) and not _dense_is_cheaper(codes, 1):
            sse, err = _by_index(codes, W, e0, jnp.asarray(self.lengths))
        else:
            sse, err = _blocks_of_latents(codes.dense(), W, e0, self.lengths)
        return _with_bias_level(sse, e0, self.bias_level), err


@register("levels.random_prefixes")
@dataclass(frozen=True)
class RandomPrefixes:
    """Level r uses the first n_r latents, lengths drawn anew at every step (Nabeshima 2024).

    n_R = d_sae always; the others are drawn without replacement with P(n <= d_sae u) = u^power, so that short ones are
    favoured: p(n) ~ (n - m + 1)^power - (n - m)^power for n = m, m + 1, ..., d_sae - 1, with m = `shortest`.  Lengths
    are arrays: a new draw costs no compilation.  Outside training the levels are those of `declared`.

    Args:
        d_sae: number of latents.
        number: levels, the full one included.
        power: of the distribution of lengths.
        shortest: least length.
        bias_level: count the reconstruction by the readout alone as a level too, the first.
        weights: of the levels in order of length; () for the mean.
        declared: lengths used outside training; () for `number` lengths that each double the one before.
    """

    d_sae: int
    number: int = 10
    power: float = 0.5
    shortest: int = 1
    bias_level: bool = False
    weights: tuple[float, ...] = ()
    declared: tuple[int, ...] = ()
    ranks = 0
    ordered = True

    def review(self, recipe: Any) -> tuple[str, ...]:
        d_sae = recipe.d_sae
        if self.d_sae != d_sae:
            raise ConfigError(f"RandomPrefixes: made for d_sae = {self.d_sae}, but the recipe has {d_sae}")
        if not 1 <= self.shortest < d_sae or not 1 <= self.number <= d_sae - self.shortest + 1 or self.power <= 0:
            raise ConfigError(
                f"RandomPrefixes: {d_sae} latents do not have {self.number} different prefixes of at least "
                f"{self.shortest} (power {self.power}); expected 1 <= shortest < d_sae, power > 0 and fewer levels"
            )
        if self.declared:
            ByPrefix(self.declared).review(recipe)
        if self.weights and len(self.declared) != self.number:
            raise ConfigError(f"RandomPrefixes: level weights need {self.number} declared lengths as well")
        check_weights("RandomPrefixes", self.number + self.bias_level, self.weights)
        check_one_matrix("RandomPrefixes", recipe.dictionary)
        return ()

    def lengths(self, ctx: Ctx) -> jax.Array:
        """The prefix lengths of this step, ascending: [R] int32."""
        if not ctx.train:
            doubling = sorted({max(1, self.d_sae >> r) for r in range(self.number)})
            return jnp.asarray(self.declared or doubling, jnp.int32)
        if self.number == 1:
            return jnp.asarray([self.d_sae], jnp.int32)
        # The largest of log p + Gumbel noise are a draw without replacement with probabilities p.
        i = jnp.arange(self.d_sae - self.shortest, dtype=jnp.float32)
        log_p = jnp.log((i + 1) ** self.power - i**self.power)
        noise = jax.random.gumbel(ctx.rng("prefixes"), i.shape)
        drawn = jax.lax.top_k(log_p + noise, self.number - 1)[1] + self.shortest
        return jnp.append(jnp.sort(drawn), self.d_sae).astype(jnp.int32)

    def share(self, ctx: Ctx) -> jax.Array:
        """[S] share of this step's levels that use each latent."""
        return _share(self.lengths(ctx), self.d_sae, self.bias_level)

    def read(self, out: Out, e0: jax.Array, ctx: Ctx) -> tuple[jax.Array, jax.Array]:
        """level_sse [B, R] and the residual of the full reconstruction [B, E]; arguments as `One.read`."""
        codes, W, lengths = out.sel.codes, out.D.atoms(out.p), self.lengths(ctx)
        if isinstance(codes, SparseCodes) and not _dense_is_cheaper(codes, 2):
            sse, err = _by_index(codes, W, e0, lengths)
        else:
            sse, err = _prefixes_of_latents(codes.dense(), W, e0, lengths)
        return _with_bias_level(sse, e0, self.bias_level), err


@register("levels.by_rank")
@dataclass(frozen=True)
class ByRank:
    """Level r uses the `counts[r]` best-ranked entries of each row; the selection reports a list so long.

    HierarchicalTopK (1, 2, ..., K), MSAE (powers of two), and with `of_k` multi-TopK: the counts are then multiples of
    the k in force, so that they follow a swept or scheduled k; give `longest`, the largest count that can occur.  The
    residual that the rest of the objective sees is that of the codes themselves.  Codes without a ranked list (from a
    threshold) are ranked by magnitude.

    Args:
        counts: increasing.
        of_k: counts are multiples of hyper["k"].
        longest: length of the ranked list; 0 for the last count.
        weights: of the levels; () for the mean.
        summed: use the weights as they are instead of dividing them by their sum.
    """

    counts: tuple[int, ...]
    of_k: bool = False
    longest: int = 0
    weights: tuple[float, ...] = ()
    summed: bool = False
    ordered = False

    @classmethod
    def example(cls) -> "ByRank":
        return cls((1, 2, 6), weights=(1.0, 0.5, 0.125), summed=True)

    @property
    def ranks(self) -> int:
        return self.longest or self.counts[-1]

    def review(self, recipe: Any) -> tuple[str, ...]:
        d_sae = recipe.d_sae
        check_nested("ByRank", self.counts, d_sae, "counts", self.weights)
        if self.of_k and not self.longest:
            raise ConfigError("ByRank: counts that are multiples of k need `longest`, the largest count that can occur")
        if not 0 < self.ranks <= d_sae:
            raise ConfigError(f"ByRank: there are {d_sae} candidates, found a ranked list of {self.ranks}")
        check_one_matrix("ByRank", recipe.dictionary)
        return ()

    def read(self, out: Out, e0: jax.Array, ctx: Ctx) -> tuple[jax.Array, jax.Array]:
        """level_sse [B, R] and the residual of the codes [B, E]; arguments as `One.read`."""
        codes, ranked, W = out.sel.codes, out.sel.ranked, out.D.atoms(out.p)
        counts: Any = self.counts
        if self.of_k:
            counts = jnp.round(jnp.asarray(counts) * ctx.hyper["k"]).astype(jnp.int32)
        if ranked is not None and not _dense_is_cheaper(ranked, len(self.counts)):
            # The kept entries are the first of the list, so the residual of the codes is one of the same kind.
            kept = jnp.minimum(codes.l0().astype(jnp.int32), ranked.values.shape[1])
            return _by_rank(ranked, W, e0, jnp.asarray(counts), kept)
        err = e0 - out.D.decode(out.p, codes)
        if ranked is not None:
            return _blocks_of_ranks(ranked, W, e0, counts), err
        if isinstance(codes, DenseCodes) and len(self.counts) * codes.d_sae <= dense_ratio() * self.ranks:
            return _best_of_dense(codes.values, W, e0, jnp.asarray(counts)), err
        ranked = _ranked_by_magnitude(codes, self.ranks)
        sse, _ = kernels.path(ranked.values, ranked.indices, W, e0, jnp.zeros(len(e0), jnp.int32))
        return sse[:, jnp.minimum(jnp.asarray(counts), ranked.values.shape[1])], err


def _dense_is_cheaper(codes: SparseCodes, products: float) -> bool:
    """Whether so many dense decodes cost less than decoding the list by entries."""
    return products * codes.d_sae <= dense_ratio() * codes.values.shape[1]


def _with_bias_level(sse: jax.Array, e0: jax.Array, wanted: bool) -> jax.Array:
    return jnp.concatenate([jnp.sum(e0**2, axis=1, keepdims=True), sse], axis=1) if wanted else sse


def _share(lengths: jax.Array, d_sae: int, bias_level: bool) -> jax.Array:
    uses = jnp.arange(d_sae)[None] < lengths[:, None]
    return jnp.sum(uses, axis=0, dtype=jnp.float32) / (len(lengths) + bias_level)


def _by_index(codes: SparseCodes, W, e0, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Prefixes of sparse codes: an entry belongs to the first prefix that holds its latent."""
    level = jnp.sum(codes.indices[:, :, None] >= lengths[None, None], axis=2, dtype=jnp.int32)
    last = jnp.full(len(e0), len(lengths) - 1, jnp.int32)
    return kernels.nested(codes.values, codes.indices, level, W, e0, last, len(lengths))


def _by_rank(ranked: SparseCodes, W, e0, counts: jax.Array, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Levels of a ranked list, and the residual of its first `kept` [B] entries."""
    size = ranked.values.shape[1]
    ends = jnp.sort(jnp.concatenate([jnp.broadcast_to(counts, (len(e0), len(counts))), kept[:, None]], axis=1), axis=1)
    level = jnp.sum(ends[:, None] <= jnp.arange(size)[None, :, None], axis=2, dtype=jnp.int32)
    place = lambda count: jnp.argmax(ends == count[:, None], axis=1)  # noqa: E731
    sse, err = kernels.nested(ranked.values, ranked.indices, level, W, e0, place(kept), len(counts) + 1, in_order=True)
    columns = jnp.stack([place(jnp.broadcast_to(c, kept.shape)) for c in counts], axis=1)
    return jnp.take_along_axis(sse, columns, axis=1), err


def _decode(values: jax.Array, W: jax.Array) -> jax.Array:
    return jnp.dot(values.astype(W.dtype), W, preferred_element_type=jnp.float32)


def _squares(residuals: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.sum(e**2, axis=-1) for e in residuals], axis=1)


def _blocks_of_latents(values, W, e0, lengths: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Prefixes of dense codes whose lengths are static: slices that add up to one decode."""
    err, residuals = e0, []
    for low, high in zip((0, *lengths), lengths, strict=False):
        err = err - _decode(values[:, low:high], W[low:high])
        residuals.append(err)
    return _squares(residuals), err


def _prefixes_of_latents(values, W, e0, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Prefixes of dense codes whose lengths are arrays: one decode in equal blocks, and one block per level.

    The residual before each block is kept, [blocks, B, E]; level r starts from that of the block where it ends and
    decodes the rest of its prefix inside that block.
    """
    rows, d_sae = values.shape
    blocks = max(n for n in range(1, BLOCKS + 1) if d_sae % n == 0)
    size = d_sae // blocks
    z, atoms = values.reshape(rows, blocks, size).swapaxes(0, 1), W.reshape(blocks, size, -1)

    def step(err, block):
        return err - _decode(*block), err

    err, before = jax.lax.scan(step, e0, (z, atoms))
    last = jnp.minimum(lengths // size, blocks - 1)
    inside = jnp.arange(size)[None] < (lengths - last * size)[:, None]
    rest = jax.vmap(_decode)(jnp.where(inside[:, None], z[last], 0.0), atoms[last])
    return jnp.sum((before[last] - rest) ** 2, axis=-1).T, err


def _blocks_of_ranks(ranked: SparseCodes, W, e0, counts: Any) -> jax.Array:
    """Levels of a long ranked list, block by block; counts are a tuple, or an array [R]."""
    err, residuals, static = e0, [], isinstance(counts, tuple)
    place = jnp.arange(ranked.values.shape[1])[None]
    bounds = (0, *counts) if static else [0, *counts]
    for low, high in itertools.pairwise(bounds):
        if static:
            block = SparseCodes(ranked.values[:, low:high], ranked.indices[:, low:high], ranked.d_sae)
        else:
            values = jnp.where((place >= low) & (place < high), ranked.values, 0.0)
            block = SparseCodes(values, ranked.indices, ranked.d_sae)
        err = err - block.decode(W)
        residuals.append(err)
    return _squares(residuals)


def _best_of_dense(values: jax.Array, W, e0, counts: jax.Array) -> jax.Array:
    """Levels of dense codes by magnitude, ties to the lower index: one masked decode per level."""
    order = jnp.argsort(-jnp.abs(jax.lax.stop_gradient(values)), axis=1, stable=True)
    places = jnp.broadcast_to(jnp.arange(values.shape[1])[None], values.shape)
    rank = jnp.zeros_like(order).at[jnp.arange(len(values))[:, None], order].set(places)

    @jax.checkpoint  # otherwise every level would keep its own masked codes for the backward pass
    def level(values, W, count):
        return e0 - _decode(jnp.where(rank < count, values, 0.0), W)

    return _squares([level(values, W, count) for count in counts])


def _ranked_by_magnitude(codes: SparseCodes | DenseCodes, size: int) -> SparseCodes:
    """The list of codes that no rank selector made: the largest entries of each row first."""
    size = min(size, codes.values.shape[1])
    order = kernels.topk(jax.lax.stop_gradient(jnp.abs(codes.values)), size)[1]
    values = jnp.take_along_axis(codes.values, order, axis=1)
    index = order if isinstance(codes, DenseCodes) else jnp.take_along_axis(codes.indices, order, axis=1)
    return SparseCodes(values, index, codes.d_sae)
