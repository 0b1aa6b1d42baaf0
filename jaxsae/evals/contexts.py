"""The text around rows of a cache, with the activation of a latent at each token."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxsae.evals.reconstruction import Progress, silent
from jaxsae.evals.scan import encode, pieces_with, rows_at_once, value_at
from jaxsae.sae import SAE

_ORIGINS = 1 << 18  # origins looked at together


@dataclass(frozen=True)
class Context:
    """Some tokens around one row.

    Attributes:
        latent: whose activations these are.
        row: the row of the split in the middle of it.
        doc: its document.
        tokens: token ids, int32 [w].
        values: the activation at each token, float32 [w]; 0 where it is off or the row is not in the cache (position
            0, dropped outliers, another document in the same window).
        peak: index of the row's own token.
    """

    latent: int
    row: int
    doc: int
    tokens: np.ndarray
    values: np.ndarray
    peak: int


def contexts(
    sae: SAE,
    split: Any,
    site: str | None,
    rows: np.ndarray,
    latents: np.ndarray,
    *,
    before: int = 14,
    after: int = 8,
    progress: Progress = silent,
) -> list[Context]:
    """The text around `rows` with the activations of `latents` (one per row).

    Activations come from cached rows of the same document, so the host is not run: rows near the wanted ones are
    found by document and position in one pass over the origins, and only they are encoded.

    Args:
        sae: the dictionary.
        split: a cache split with text.
        site: name of the site.
        rows: [C] rows of the split.
        latents: [C] the latent shown at each.
        before: tokens shown before the row's own.
        after: tokens shown after it.
        progress: called after every piece.

    Raises:
        DataError: the cache has no text.
    """
    rows, latents = np.asarray(rows, np.int64), np.asarray(latents, np.int64)
    if not len(rows):
        return []
    origin, window = split.origin(rows), split.context(rows)
    first = np.maximum(0, np.maximum(window.offset - before, window.offset - origin.position))
    last = np.minimum(window.offset + after + 1, window.tokens.shape[1])
    last = np.minimum(last, window.offset + _length(split.cache.documents, origin.doc) - origin.position)
    values = np.zeros((len(rows), before + after + 1), np.float32)
    found = _neighbours(split, origin.doc, origin.position, before, after, progress)
    for at, context, place in _grouped(*found, rows_at_once(sae)):
        wanted, local = np.unique(at, return_inverse=True)
        start = int(wanted[0])
        codes = encode(sae, split.read(start, int(wanted[-1]) + 1, site)[wanted - start], rows_at_once(sae))
        values[context, place] = value_at(codes, local, latents[context])
        progress("contexts", int(wanted[-1]) + 1, split.rows)
    out = []
    for i in range(len(rows)):
        shift = before - int(window.offset[i])
        a, b = int(first[i]), int(last[i])
        tokens, shown = window.tokens[i, a:b], values[i, a + shift : b + shift]
        peak = int(window.offset[i]) - a
        out.append(Context(int(latents[i]), int(rows[i]), int(origin.doc[i]), tokens, shown, peak))
    return out


def _length(documents: Mapping[int, np.ndarray], doc: np.ndarray) -> np.ndarray:
    """Tokens in each document [C]: what follows them in a window is padding, or another document."""
    unique, back = np.unique(doc, return_inverse=True)
    return np.asarray([len(documents[d]) for d in unique.tolist()])[back]


def _neighbours(
    split: Any, doc: np.ndarray, position: np.ndarray, before: int, after: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All rows of the split that lie in one of the contexts: (row, context, place in the context), sorted by row."""
    key = _key(doc, position)
    order = np.argsort(key, kind="stable")
    key, found = key[order], []
    for start in range(0, split.rows, _ORIGINS):
        row = np.arange(start, min(start + _ORIGINS, split.rows))
        origin = split.origin(row)
        low = np.searchsorted(key, _key(origin.doc, np.maximum(origin.position - after, 0)), "left")
        high = np.searchsorted(key, _key(origin.doc, origin.position + before), "right")
        count = high - low
        offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        context = order[np.repeat(low, count) + offset]
        place = np.repeat(origin.position, count) - position[context] + before
        found.append((np.repeat(row, count), context, place))
        progress("origins", int(row[-1]) + 1, split.rows)
    row, context, place = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return row, context, place


def _key(doc: np.ndarray, position: np.ndarray) -> np.ndarray:
    return (np.asarray(doc, np.int64) << 32) + np.asarray(position, np.int64)


def _grouped(
    row: np.ndarray, context: np.ndarray, place: np.ndarray, step: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The three arrays in pieces whose rows lie within `step` rows of the split."""
    start = 0
    for _, group in pieces_with(row, step):
        part = slice(start, start + len(group))
        start += len(group)
        yield row[part], context[part], place[part]
