"""A small activation cache of a small host, written in a second: for tests of everything that reads caches."""

import os
from collections.abc import Sequence

import jax
import numpy as np

from jaxsae.data.cache import Cache, open_cache
from jaxsae.data.manifest import Manifest
from jaxsae.data.writer import Block, CacheWriter
from jaxsae.hosts import Host

_SUBJECTS = ("the cat", "a small dog", "my aunt", "the old sailor", "every child", "a machine")
_VERBS = ("saw", "ate", "painted", "forgot", "bought 12", "sold 345")
_OBJECTS = ("red apples", "the sea", "a blue boat", "two loaves & jam", "</script> tags", "nothing")


def sentences(documents: int, length: int = 6, seed: int = 0) -> list[str]:
    """Documents of `length` little sentences, the same for the same seed."""
    rng = np.random.default_rng(seed)
    pick = lambda words: words[rng.integers(len(words))]  # noqa: E731
    sentence = lambda: f"{pick(_SUBJECTS)} {pick(_VERBS)} {pick(_OBJECTS)}"  # noqa: E731
    return [". ".join(sentence() for _ in range(length)) + "." for _ in range(documents)]


def tiny_cache(
    path: str | os.PathLike,
    host: Host,
    sites: Sequence[str] = ("blocks.1.hook_resid_post",),
    documents: Sequence[str] = (),
    context_size: int = 32,
    heldout: int = 4,
) -> Cache:
    """Runs documents through a host, each in windows of its own, and caches every row but position 0 of a window.

    Args:
        path: a new folder.
        host: the model.
        sites: what is cached.
        documents: texts; default 24 of `sentences`.
        context_size: T.
        heldout: every so many documents, one is held out.

    Returns:
        The cache, finished.

    Example:
        >>> import tempfile
        >>> from jaxsae.testing.tiny_host import tiny_host
        >>> tiny_cache(tempfile.mkdtemp(), tiny_host()).split("heldout").rows > 0
        True
    """
    text = {"context_size": context_size, "packing": "none"}
    pairs = tuple((site, host.model.width(site)) for site in sites)
    manifest = Manifest(sites=pairs, dtype="float32", host=host.identity, text=text, heldout_fraction=1 / heldout)
    ids = [host.tokenizer.encode(t) for t in documents or sentences(24)]
    writer = CacheWriter(path, manifest)
    held = [i for i in range(len(ids)) if i % heldout == heldout - 1]
    kept = [i for i in range(len(ids)) if i % heldout != heldout - 1]
    writer.commit({"train": _block(host, sites, ids, kept, context_size)})
    writer.commit({"heldout": _block(host, sites, ids, held, context_size)})
    writer.finish()
    return open_cache(path)


def _block(host: Host, sites: Sequence[str], ids: list[list[int]], which: list[int], T: int) -> Block:
    pieces = [(i, s, ids[i][s : s + T]) for i in which for s in range(0, len(ids[i]), T)]
    tokens, owner = np.zeros((len(pieces), T), np.int32), np.full((len(pieces), T), -1, np.int32)
    position = np.zeros((len(pieces), T), np.int64)
    for w, (doc, start, piece) in enumerate(pieces):
        tokens[w, : len(piece)], owner[w, : len(piece)] = piece, doc
        position[w] = start + np.arange(T)
    run = jax.jit(lambda params, t: host.model.run(params, t, taps=tuple(sites), logits=False).taps)
    taps = run(host.params, tokens)
    keep = np.flatnonzero((owner >= 0) & (np.arange(T)[None] > 0))
    rows = {site: np.asarray(taps[site], np.float32).reshape(-1, taps[site].shape[-1])[keep] for site in sites}
    return Block(rows, owner.reshape(-1)[keep], position.reshape(-1)[keep], keep, tokens, owner)
