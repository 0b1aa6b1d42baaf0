"""How much of a host's cross-entropy survives when a site is replaced by its reconstruction."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae import hosts, io, parallel
from jaxsae.errors import ConfigError, DataError
from jaxsae.evals.reconstruction import Progress, padded, silent
from jaxsae.hosts import Host
from jaxsae.hosts.sites import RESIDUAL, Site, parse
from jaxsae.sae import SAE

#: What stands at the site in each variant of the run.
VARIANTS = ("clean", "sae", "mean", "zero")
#: Logits of one variant that exist at a time; four variants in float32 take 16 bytes for each.
_LOGITS = 2**22


class Windows(NamedTuple):
    """Token windows to evaluate on.

    Attributes:
        tokens: [N, T] int32; windows shorter than T are filled up at the end with anything.
        length: [N] real tokens of each window.
        document: [N] the document each window comes from: the unit of the standard errors.
    """

    tokens: np.ndarray
    length: np.ndarray
    document: np.ndarray


def windows(documents: Sequence[tuple[int, np.ndarray]], length: int, tokens: int, replace_from: int = 1) -> Windows:
    """Cuts documents into windows of `length` until at least `tokens` predictions from replaced positions are there.

    Args:
        documents: (id, token ids) in the order wanted.
        length: T, the longest window.
        tokens: predictions to collect; fewer if the documents end first.
        replace_from: first position that is replaced.

    Raises:
        DataError: no document is long enough for a single prediction.
    """
    rows, lengths, ids, found = [], [], [], 0
    for name, ids_of_document in documents:
        for start in range(0, len(ids_of_document), length):
            piece = np.asarray(ids_of_document[start : start + length], np.int32)
            if len(piece) > replace_from + 1 and found < tokens:
                rows.append(padded(piece, length))
                lengths.append(len(piece))
                ids.append(name)
                found += len(piece) - 1 - replace_from
    if not rows:
        raise DataError(
            f"none of the {len(documents)} documents has more than {replace_from + 1} tokens; expected text to predict"
        )
    return Windows(np.stack(rows), np.asarray(lengths), np.asarray(ids))


def loss_recovered(
    sae: SAE,
    host: Host,
    site: str,
    data: Windows,
    mean: np.ndarray,
    *,
    replace_from: int = 1,
    batch_windows: int = 4,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
    share: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """Cross-entropy with the site untouched, reconstructed, mean-ablated and zero-ablated, over the same tokens.

        loss recovered = (CE_ablated - CE_sae) / (CE_ablated - CE_clean)
        KL             = sum_v p_clean(v) (log p_clean(v) - log p_sae(v))

    The site is replaced at positions t >= replace_from of every window; a token counts if it is predicted from such a
    position.  Cross-entropies and KL are means over those tokens, in nats.  Standard errors come from resampling
    documents.  Zero ablation flatters sites of large norm: read the mean form first.

    Args:
        sae: a dictionary that reads and writes `site`.
        host: the model.
        site: where it is spliced in.
        data: windows, as `windows` cuts them; use documents that were not trained on.
        mean: [D] the mean activation (of the training split) for the mean ablation.
        replace_from: 1 spares position 0, where many models park an attention sink of extreme norm.
        batch_windows: windows per device call; memory grows with it, the logits do not.  Where host or dictionary lie
            on a mesh, its axis `data` takes equal shares: rounded up to a multiple of it.
        bootstrap: resamples of the documents.
        seed: of the resampling.
        progress: called after every batch.
        share: (number of this process, of how many) where all processes of a run share the batches.

    Returns:
        clean_ce, sae_ce, mean_ce, zero_ce, loss_recovered_mean, loss_recovered_zero, kl (sae), kl_mean, kl_zero,
        ce_tokens, ce_documents, replace_from, and standard_error: a dict of the same names (None for one document).

    Raises:
        ConfigError: widths of dictionary, site and mean do not agree.
        DataError: a cross-entropy is not finite.
    """
    _check(sae, host, site, mean)
    mesh, rows = parallel.mesh_of((host.params, sae.params)), None
    if mesh is not None:
        host, sae, rows = hosts.place(host, mesh), io.place(sae, mesh), parallel.sharding(mesh, "B")
        batch_windows += -batch_windows % mesh.shape["data"]
    documents, where = np.unique(data.document, return_inverse=True)
    sums = np.zeros((len(documents), 8))  # 4 losses, 3 divergences, count
    for start in range(share[0] * batch_windows, len(data.tokens), share[1] * batch_windows):
        part = slice(start, start + batch_windows)
        tokens, length = (jax.device_put(padded(a[part], batch_windows), rows) for a in (data.tokens, data.length))
        found = _batch(host.model, site, replace_from, host.params, sae, jnp.asarray(mean, jnp.float32), tokens, length)
        np.add.at(sums, where[part], np.asarray(found, np.float64)[: len(where[part])])
        progress("cross-entropy", min(start + batch_windows, len(data.tokens)), len(data.tokens))
    sums = np.sum(parallel.gather(sums), axis=0) if share[1] > 1 else sums
    numbers = _numbers(sums.sum(0))
    bad = [n for n in ("clean_ce", "sae_ce", "mean_ce", "zero_ce") if not math.isfinite(numbers[n])]
    if bad:
        raise DataError(f"{bad[0]} is not finite; expected finite weights and activations at {site!r}")
    facts = {"ce_tokens": int(sums[:, 7].sum()), "ce_documents": len(documents), "replace_from": replace_from}
    return {**numbers, **facts, "standard_error": _standard_errors(sums, bootstrap, seed)}


def _check(sae: SAE, host: Host, site: str, mean: np.ndarray) -> None:
    width = host.model.width(site)
    if (sae.d_in, sae.d_out) != (width, width):
        raise ConfigError(
            f"site {site!r} has width {width}, but the dictionary reads {sae.d_in} and writes {sae.d_out}; "
            "expected the dictionary trained on this site"
        )
    if np.shape(mean) != (width,):
        raise ConfigError(f"the mean for the ablation should have shape ({width},), found {np.shape(mean)}")


def entry(site: str, n_layers: int) -> str:
    """The residual site at or just before `site`: everything up to it is common to all variants."""
    at = parse(site, n_layers)
    before = "resid_mid" if at.point.startswith("mlp") else "resid_pre"
    return Site(at.layer, at.point if at.point in RESIDUAL else before).name


def _batch(
    model: Any, site: str, first: int, params: Any, sae: SAE, mean: jax.Array, tokens: jax.Array, length: jax.Array
) -> jax.Array:
    """Sums over the counted tokens of each window: [B, 8] = four losses, three divergences, count.

    Three programs, so that the host's two are compiled once for all dictionaries.
    """
    stream, x = _before(model, site, params, tokens)
    with parallel.use(parallel.mesh_of(sae.params)):
        xhat = _reconstruct(sae, x)
    return _after(model, site, first, params, stream, x, xhat, mean, tokens, length)


@partial(jax.jit, static_argnums=(0, 1))
def _before(model: Any, site: str, params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The residual stream that all variants share, and the activations at the site, both [B, T, D]."""
    start = entry(site, model.n_layers)
    taps = model.run(params, tokens, taps=(start, site), logits=False).taps
    B, T = tokens.shape
    return taps[start], taps[site].reshape(B, T, -1).astype(jnp.float32)


@jax.jit
def _reconstruct(sae: SAE, x: jax.Array) -> jax.Array:
    return sae(x)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _after(
    model: Any,
    site: str,
    first: int,
    params: Any,
    stream: jax.Array,
    x: jax.Array,
    xhat: jax.Array,
    mean: jax.Array,
    tokens: jax.Array,
    length: jax.Array,
) -> jax.Array:
    """The sums of `_batch`, from what the dictionary made of the site's activations."""
    B, T = tokens.shape
    start, last = entry(site, model.n_layers), Site(model.n_layers - 1, "resid_post").name
    replaced = (jnp.arange(T) >= first)[None, None, :, None]
    other = jnp.stack([x, xhat.astype(x.dtype), jnp.broadcast_to(mean[None, None], x.shape), jnp.zeros_like(x)])

    def edit(act: jax.Array) -> jax.Array:
        act = act.reshape(4, B, T, -1)
        return jnp.where(replaced, other.astype(act.dtype), act).reshape(4 * B, T, -1)

    many = lambda a: jnp.tile(a, (4, 1, 1))  # noqa: E731
    run = model.run(params, None, taps=(last,), edits={site: edit}, logits=False, resume=(start, many(stream)))
    scores = _scores(model, params, run.taps[last].reshape(4, B * T, -1), jnp.roll(tokens, -1, axis=1).reshape(-1))
    position = jnp.arange(T)[None]
    counted = ((position >= first) & (position < length[:, None] - 1)).astype(jnp.float32)
    each = jnp.concatenate([scores.reshape(7, B, T), jnp.ones((1, B, T))])
    return jnp.sum(jnp.where(counted[None] > 0, each, 0.0), axis=2).T


def _scores(model: Any, params: Any, final: jax.Array, target: jax.Array) -> jax.Array:
    """Cross-entropy of the four variants and KL(clean || other) of three, per position: [7, N].

    Args:
        final: [4, N, d_model] last residual streams.
        target: [N] the token to predict.
    """
    n, rows = target.shape[0], min(target.shape[0], max(1, _LOGITS // model.vocab_size))
    blocks = -(-n // rows)
    final = jnp.pad(final, ((0, 0), (0, blocks * rows - n), (0, 0)))
    final = jnp.moveaxis(final.reshape(4, blocks, rows, -1), 1, 0)
    target = jnp.pad(target, (0, blocks * rows - n)).reshape(blocks, rows)

    def score(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        log_p = jax.nn.log_softmax(model.unembed(params, block[0]), axis=-1)
        chosen = jnp.take_along_axis(log_p, jnp.broadcast_to(block[1][None, :, None], (4, rows, 1)), axis=2)
        divergence = jnp.sum(jnp.exp(log_p[:1]) * (log_p[:1] - log_p[1:]), axis=2)
        return jnp.concatenate([-chosen[..., 0], divergence])

    return jnp.moveaxis(jax.lax.map(score, (final, target)), 0, 1).reshape(7, blocks * rows)[:, :n]


def _numbers(sums: np.ndarray) -> dict[str, Any]:
    """The quantities from sums [..., 8]."""
    losses, divergences = sums[..., :4] / sums[..., 7:], sums[..., 4:7] / sums[..., 7:]
    clean, ours, mean, zero = np.moveaxis(losses, -1, 0)
    out = {f"{name}_ce": losses[..., i] for i, name in enumerate(VARIANTS)}
    with np.errstate(divide="ignore", invalid="ignore"):
        out["loss_recovered_mean"] = (mean - ours) / (mean - clean)
        out["loss_recovered_zero"] = (zero - ours) / (zero - clean)
    out |= {name: divergences[..., i] for i, name in enumerate(("kl", "kl_mean", "kl_zero"))}
    return {k: float(v) if v.ndim == 0 else v for k, v in out.items()}


def _standard_errors(sums: np.ndarray, resamples: int, seed: int) -> dict[str, float] | None:
    """Standard deviation of every number over resamples of the documents."""
    n = len(sums)
    if n < 2 or resamples < 2:
        return None
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return {name: float(np.std(values)) for name, values in _numbers(draws @ sums).items()}
