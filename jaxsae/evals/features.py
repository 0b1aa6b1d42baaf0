"""What single latents respond to and what they write: strongest contexts, quantiles, promoted tokens, neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.evals.contexts import Context, contexts
from jaxsae.evals.reconstruction import Progress, silent
from jaxsae.evals.scan import Scan, scan
from jaxsae.hosts import Host
from jaxsae.hosts.sites import parse
from jaxsae.sae import SAE

#: Points of a block whose activation is added to (or is) the residual stream, so that the logit lens applies.
WRITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


@register("eval.features")
@dataclass(frozen=True)
class FeaturesConfig:
    """What is collected about latents.

    Attributes:
        latents: how many are shown; the rest of the dictionary is counted but not shown.
        minimum: rows in which a latent has to be on to be shown.
        rows: rows looked at; None for all.
        split: rows of which split.
        top: strongest contexts per latent.
        quantiles: quantiles of the activation (where it is on) shown besides.
        per_quantile: contexts per quantile.
        before: tokens shown before the one the context is about.
        after: tokens shown after it.
        tokens: promoted tokens, and as many suppressed ones.
        similar: latents of nearest atom.
        seed: of the choice of latents and of the sample behind the quantiles.
    """

    latents: int = 1000
    minimum: int = 8
    rows: int | None = 262_144
    split: str = "train"
    top: int = 6
    quantiles: tuple[float, ...] = (0.9, 0.75, 0.5, 0.25, 0.1)
    per_quantile: int = 2
    before: int = 14
    after: int = 10
    tokens: int = 8
    similar: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Feature:
    """One latent.

    Attributes:
        latent: its number.
        density: share of rows in which it is on.
        mean: mean activation where it is on.
        maximum: its strongest activation.
        histogram: counts of a sample of its activations in 20 equal bins from 0 to the strongest.
        groups: ("max" or a quantile such as "0.75", contexts), strongest first.
        promoted: (token, logit above the mean over the vocabulary) it writes most for.
        suppressed: the same, most against.
        similar: (latent, cosine) of the nearest atoms.
    """

    latent: int
    density: float
    mean: float
    maximum: float
    histogram: tuple[int, ...]
    groups: tuple[tuple[str, tuple[Context, ...]], ...]
    promoted: tuple[tuple[str, float], ...] = ()
    suppressed: tuple[tuple[str, float], ...] = ()
    similar: tuple[tuple[int, float], ...] = ()


def features(
    sae: SAE,
    cache: Any,
    host: Host | None = None,
    *,
    site: str | None = None,
    latents: Sequence[int] | None = None,
    include: Sequence[int] = (),
    config: FeaturesConfig = FeaturesConfig(),
    progress: Progress = silent,
) -> tuple[list[Feature], Scan]:
    """Collects what there is to see about latents, in one pass over rows and one over the rows around those shown.

    Args:
        sae: any dictionary that reads `site`.
        cache: an activation cache; without text in it, contexts stay empty.
        host: its unembedding gives the promoted tokens; None for none.
        site: name of the site, or None if the cache has only one.
        latents: numbers of the latents to show; None draws `config.latents` of those on often enough.
        include: latents to be among those drawn.
        config: how much of everything.
        progress: called now and then.

    Returns:
        Features in order of their number, and the scan with counts for the whole dictionary.

    Raises:
        ConfigError: a latent that does not exist, or widths that do not agree.
        DataError: no rows.
    """
    site = cache.site(site)
    if sae.d_in != cache.d(site):
        raise ConfigError(
            f"the dictionary reads width {sae.d_in}, but {site!r} has width {cache.d(site)} in this cache"
        )
    split = cache.split(config.split)
    counts = scan(sae, split, site, limit=config.rows, n_top=4 * config.top, seed=config.seed, progress=progress)
    shown = _chosen(latents, include, counts, config)
    picks = _picks(shown, counts, split, config)
    has_text = bool(cache.manifest.text.get("context_size"))
    around: dict[tuple[int, int], Context] = {}
    if has_text and picks:
        row, latent = np.asarray([(r, j) for j, _, r in picks]).T
        found = contexts(sae, split, site, row, latent, before=config.before, after=config.after, progress=progress)
        around = {(c.latent, c.row): c for c in found}
    atoms = np.asarray(sae.W_dec, np.float32)
    words = promoted_tokens(host, site, atoms[shown], config.tokens, progress) if host is not None else None
    near = similar_atoms(atoms, shown, config.similar) if config.similar else [()] * len(shown)
    by_latent: dict[int, dict[str, list[Context]]] = {int(j): {} for j in shown}
    for j, group, r in picks:
        if (j, r) in around:
            by_latent[j].setdefault(group, []).append(around[j, r])
    return [
        _feature(int(j), counts, by_latent[int(j)], words[i] if words else ((), ()), near[i])
        for i, j in enumerate(shown)
    ], counts


def _chosen(latents: Sequence[int] | None, include: Sequence[int], counts: Scan, config: FeaturesConfig) -> np.ndarray:
    wanted = np.unique(np.asarray(include if latents is None else latents, np.int64))
    if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < len(counts.fired):
        raise ConfigError(
            f"latents are numbered 0 to {len(counts.fired) - 1}, found {int(wanted[0])} to {int(wanted[-1])}"
        )
    if latents is not None:
        return wanted
    wanted = wanted[counts.fired[wanted] >= config.minimum][: config.latents]
    live = np.setdiff1d(np.flatnonzero(counts.fired >= config.minimum), wanted)
    drawn = np.random.default_rng(config.seed).permutation(live)[: config.latents - len(wanted)]
    return np.sort(np.concatenate([wanted, drawn]))


def _picks(shown: np.ndarray, counts: Scan, split: Any, config: FeaturesConfig) -> list[tuple[int, str, int]]:
    """(latent, group, row) of every context to show; near-identical ones of one latent are left out."""
    rows = np.concatenate([counts.top.row[shown], counts.sample.row[shown]], axis=1)
    known = np.unique(rows[rows >= 0])
    origin = split.origin(known)
    place = {int(r): (int(d), int(p)) for r, d, p in zip(known, origin.doc, origin.position, strict=True)}
    out = []
    for j in shown.tolist():
        taken: list[int] = []

        def fresh(row: int, taken: list[int] = taken) -> bool:
            doc, at = place[row]
            return all(place[t][0] != doc or abs(place[t][1] - at) > config.before for t in taken)

        top = [r for r in counts.top.row[j].tolist() if r >= 0]
        for group, candidates, n in (("max", top, config.top), *_quantiles(counts, j, config)):
            for row in candidates:
                if n and fresh(row):
                    taken.append(row)
                    out.append((j, group, row))
                    n -= 1
    return out


def _quantiles(counts: Scan, latent: int, config: FeaturesConfig) -> list[tuple[str, list[int], int]]:
    """Per quantile, sampled rows in order of their distance from it."""
    on = counts.sample.row[latent] >= 0
    rows, strength = counts.sample.row[latent][on], np.abs(counts.sample.value[latent][on])
    if len(rows) < 2 * len(config.quantiles):
        return []
    rank = np.argsort(np.argsort(strength)) / (len(rows) - 1)
    near = [np.argsort(np.abs(rank - q), kind="stable")[: 2 * config.per_quantile] for q in config.quantiles]
    return [(f"{q:g}", rows[i].tolist(), config.per_quantile) for q, i in zip(config.quantiles, near, strict=True)]


def _feature(j: int, counts: Scan, groups: dict[str, list[Context]], words: Any, near: Any) -> Feature:
    sample = np.abs(counts.sample.value[j][counts.sample.row[j] >= 0])
    strongest = float(counts.top.value[j][0])
    bins, _ = np.histogram(sample, 20, (0.0, abs(strongest) or 1.0))
    return Feature(
        latent=j,
        density=float(counts.density[j]),
        mean=float(counts.total[j] / max(1, counts.fired[j])),
        maximum=strongest,
        histogram=tuple(bins.tolist()),
        groups=tuple((name, tuple(found)) for name, found in groups.items()),
        promoted=words[0],
        suppressed=words[1],
        similar=near,
    )


def promoted_tokens(host: Host, site: str, directions: np.ndarray, n: int, progress: Progress = silent) -> list | None:
    """Tokens whose logits directions of a site push up and down the most, through the final norm's gain.

    Args:
        host: its `model.unembed_direction` is the logit lens.
        site: where the directions live; only places that write to the residual stream can be read this way.
        directions: [N, d_model].
        n: tokens either way.
        progress: called after every piece.

    Returns:
        Per direction ((token, logit), ...) promoted and suppressed; logits are relative to their mean over the
        vocabulary, which no probability depends on.  None where the site does not write to the stream.
    """
    if parse(site, host.model.n_layers).point not in WRITES or directions.shape[1] != host.model.d_model:
        return None
    out, step = [], 32
    for start in range(0, len(directions), step):
        piece = directions[start : start + step]
        padding = np.zeros((step - len(piece), piece.shape[1]), piece.dtype)
        logits = np.asarray(_lens(host.model, host.params, np.concatenate([piece, padding])))[: len(piece)]
        for row in logits:
            ends = np.argpartition(row, (n, len(row) - n)) if 2 * n < len(row) else np.argsort(row)
            high, low = ends[-n:], ends[:n]
            ids = [*high[np.argsort(-row[high])], *low[np.argsort(row[low])]]
            words = [(w, float(row[i])) for w, i in zip(host.tokenizer.token_strings(ids), ids, strict=True)]
            out.append((tuple(words[: len(high)]), tuple(words[len(high) :])))
        progress("promoted tokens", min(start + step, len(directions)), len(directions))
    return out


@partial(jax.jit, static_argnums=0)
def _lens(model: Any, params: Any, directions: jax.Array) -> jax.Array:
    logits = model.unembed_direction(params, directions)
    return logits - jnp.mean(logits, axis=1, keepdims=True)


def similar_atoms(
    atoms: np.ndarray, which: np.ndarray, n: int, others: np.ndarray | None = None
) -> list[tuple[tuple[int, float], ...]]:
    """The n atoms nearest in direction to some atoms, as (latent, cosine).

    Args:
        atoms: [S, E].
        which: latents to look at.
        n: neighbours of each.
        others: [S', E] another dictionary to look for them in; None looks in the same one, past the atom itself.
    """
    unit = lambda a: a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)  # noqa: E731
    mine, theirs = unit(atoms[which]), unit(atoms if others is None else others)
    out: list[tuple[tuple[int, float], ...]] = []
    for start in range(0, len(mine), 256):
        cosine = mine[start : start + 256] @ theirs.T
        if others is None:
            cosine[np.arange(len(cosine)), which[start : start + 256]] = -np.inf
        best = np.argsort(-cosine, axis=1)[:, :n] if cosine.shape[1] <= n else _best(cosine, n)
        for row, columns in zip(cosine, best, strict=True):
            out.append(tuple((int(j), float(row[j])) for j in columns if np.isfinite(row[j])))
    return out


def _best(scores: np.ndarray, n: int) -> np.ndarray:
    part = np.argpartition(-scores, n - 1, axis=1)[:, :n]
    return np.take_along_axis(part, np.argsort(-np.take_along_axis(scores, part, 1), axis=1), 1)
