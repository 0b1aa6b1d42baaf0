"""Whether two dictionaries are one: codes and reconstructions compared on random and on edge inputs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsae.sae import SAE

#: Input changes that rounding could cause; rows whose support they change are ties and decide nothing.
NUDGE = 1e-6
POSITIONS = 8


@dataclass(frozen=True)
class Comparison:
    """Differences of one dictionary from another, over all rows compared.

    Attributes:
        rows: rows compared.
        ties: rows left out, because a change of 1e-6 of the input already changes which latents are on.
        support_agreement: share of latents on in one that are on in the other, over the union.
        codes: largest |difference| of a code, relative to the larger of 1 and its row's largest input and code.
        reconstruction: largest |difference| of an output, relative to the larger of 1 and its row's largest output.
    """

    rows: int
    ties: int
    support_agreement: float
    codes: float
    reconstruction: float


def compare(a: SAE, b: SAE, latent_scale: Any = None, rows: int = 256, seed: int = 0, chunk: int = 64) -> Comparison:
    """Compares two dictionaries of equal sizes in float32.

    Args:
        a: the first.
        b: the second.
        latent_scale: [S]; latent i of b is meant to be this many times that of a.
        rows: random rows at least, beside the edge cases.
        seed: of the random rows.
        chunk: rows at a time, a multiple of 8; both dense codes of a chunk are held in memory.
    """
    a, b = in_float32(a), in_float32(b)
    scale = np.ones(a.d_sae) if latent_scale is None else np.asarray(latent_scale)
    count = ties = same = union = 0
    worst = [0.0, 0.0]
    for x in _inputs(a, rows, seed, chunk):
        codes_a, codes_b = _codes(a, x) * scale, _codes(b, x)
        on_a, on_b = codes_a != 0, codes_b != 0
        steady = _steady(a, x, on_a)
        count, ties = count + len(steady), ties + int((~steady).sum())
        same += int((on_a & on_b)[steady].sum())
        union += int((on_a | on_b)[steady].sum())
        size = np.maximum(1.0, np.maximum(np.abs(x).reshape(len(steady), -1).max(1), np.abs(codes_a).max(1)))
        ya, yb = (np.asarray(sae(jnp.asarray(x)), np.float64).reshape(len(steady), -1) for sae in (a, b))
        for i, (u, v, by) in enumerate(((codes_a, codes_b, size), (ya, yb, np.maximum(1.0, np.abs(ya).max(1))))):
            gap = np.abs(u - v).max(1) / by
            worst[i] = max(worst[i], float(np.where(np.isnan(gap), np.inf, gap)[steady].max(initial=0.0)))
    return Comparison(count, ties, same / union if union else 1.0, *worst)


def in_float32(sae: SAE) -> SAE:
    """The same dictionary with its 16-bit arrays widened, so that only the weights are compared, not the arithmetic."""
    wide = {n: v.astype(jnp.float32) if jnp.issubdtype(v.dtype, jnp.floating) else v for n, v in sae.params.items()}
    return replace(sae, params=wide)


def _codes(sae: SAE, x: np.ndarray) -> np.ndarray:
    codes = np.asarray(sae.encode(jnp.asarray(x)).dense(), np.float64)
    return codes.reshape(-1, codes.shape[-1])


def _steady(sae: SAE, x: np.ndarray, on: np.ndarray) -> np.ndarray:
    """Rows whose support survives a change of the input as small as rounding."""
    noise = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    bias = float(jnp.max(jnp.abs(sae.params["b_dec"]))) if "b_dec" in sae.params else 0.0
    size = np.maximum(np.abs(x).max(axis=-1, keepdims=True), bias)
    steady = np.ones(len(on), bool)
    for nudged in (x * np.float32(1 + NUDGE), x * np.float32(1 - NUDGE), x + np.float32(NUDGE) * size * noise):
        steady &= ((_codes(sae, nudged.astype(np.float32)) != 0) == on).all(1)
    return steady


def _inputs(sae: SAE, rows: int, seed: int, chunk: int) -> Iterator[np.ndarray]:
    """Random rows at three sizes, then edges: zeros, one coordinate, constants, tiny and huge rows, the bias.

    In whole chunks of one shape, so that everything is compiled once.
    """
    rng, d = np.random.default_rng(seed), sae.d_in
    edges = [np.zeros((1, d)), np.eye(1, d), -np.eye(1, d), np.ones((1, d)), np.full((1, d), -3.0)]
    edges += [rng.standard_normal((2, d)) * 1e-4, rng.standard_normal((2, d)) * 1e3]
    if d == sae.d_out and "b_dec" in sae.params:
        edges.append(np.asarray(sae.params["b_dec"], np.float32)[None])
    count = -(-(rows + sum(map(len, edges))) // chunk) * chunk - sum(map(len, edges))
    random = rng.standard_normal((count, d)) * rng.choice([0.3, 1.0, 5.0], (count, 1))
    every = np.concatenate([random, *edges]).astype(np.float32)
    shape = (-1, _positions(sae), d) if _looks_along(sae) else (-1, d)
    for start in range(0, len(every), chunk):
        yield every[start : start + chunk].reshape(shape)


def _looks_along(sae: SAE) -> bool:
    inner = getattr(sae.encoder, "encoder", sae.encoder)
    return hasattr(inner, "in_sequences") or hasattr(sae.readout, "in_sequences")


def _positions(sae: SAE) -> int:
    """A length of sequences that divides a chunk and that the coder has positions for."""
    most = getattr(getattr(sae.encoder, "encoder", None), "context", POSITIONS)
    return next(n for n in (POSITIONS, 4, 2, 1) if n <= most)
