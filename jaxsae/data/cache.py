"""Reading an activation cache: rows, where they came from, and what is known about them."""

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsae.data.manifest import SPLITS, Manifest, Progress, part_folder, read_manifest
from jaxsae.data.stats import SiteStats
from jaxsae.data.store import CHUNK_ROWS, REMEDY, Folder, explained, read_into
from jaxsae.data.writer import dequantise, numpy_dtype
from jaxsae.errors import DataError, closest


def open_cache(path: str | os.PathLike) -> "Cache":
    """The activation cache in a folder or under a URL (`gs://`, `s3://`), as far as it is written.

    Raises:
        DataError: no cache there, damaged, of an unknown format version, or without any row yet.

    Example:
        >>> cache = open_cache("runs/acts")  # doctest: +SKIP
        >>> cache.split("train").read(0, 1024).shape  # doctest: +SKIP
        (1024, 576)
    """
    return Cache(path)


class Origin(NamedTuple):
    """Where rows came from: token number `position` of document `doc`, each [N]."""

    doc: np.ndarray
    position: np.ndarray


class Context(NamedTuple):
    """The windows that rows were computed in, as run: `tokens` [N, T], and each row's index in its window, [N]."""

    tokens: np.ndarray
    offset: np.ndarray


class Cache:
    """A cache as it was when opened; see `open_cache`.

    Attributes:
        manifest: what was harvested and how.
        progress: how much of it there is, per part.
    """

    def __init__(self, path: str | os.PathLike):
        self._folder = Folder(path)
        self.manifest: Manifest = read_manifest(self._folder)
        folders = [part_folder(self._folder, i) for i in range(self.manifest.parts)]
        fresh = Progress.fresh(self.manifest)
        self.progress: list[Progress] = [Progress.read(p) or fresh for p in folders]
        if not any(sum(p.rows.values()) for p in self.progress):
            raise DataError(f"the cache {self._folder} holds no rows yet; let `jaxsae harvest` write some first")
        self._splits = {s: self._open_split(s, folders) for s in SPLITS}

    def __repr__(self) -> str:
        rows = ", ".join(f"{self.split(s).rows} {s}" for s in SPLITS)
        return f"Cache({str(self._folder)!r}, {rows} rows, {dict(self.manifest.sites)}, {self.manifest.dtype})"

    @property
    def path(self) -> str:
        """Folder or URL."""
        return str(self._folder)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(name for name, _ in self.manifest.sites)

    @property
    def done(self) -> bool:
        """Whether the harvest came to its end."""
        return all(p.done for p in self.progress)

    @property
    def dropped(self) -> dict[str, int]:
        """Rows left out of the cache, by reason."""
        out: dict[str, int] = {}
        for progress in self.progress:
            for reason, count in progress.dropped.items():
                out[reason] = out.get(reason, 0) + count
        return out

    def d(self, site: str | None = None) -> int:
        """Width of a site (which may be left out if there is only one)."""
        return dict(self.manifest.sites)[self.site(site)]

    def site(self, name: str | None = None) -> str:
        """The name of a site of this cache, checked.

        Raises:
            DataError: no such site, or none named although there are several.
        """
        if name is None and len(self.sites) == 1:
            return self.sites[0]
        if name not in self.sites:
            asked = "name one of its sites" if name is None else f"it has no site {name!r}"
            raise DataError(
                f"the cache {self.path} has {len(self.sites)} sites; {asked}{closest(str(name), self.sites)}"
            )
        return name

    def stats(self, site: str | None = None, split: str = "train") -> SiteStats:
        """Moments and norms of the rows of a site."""
        name = self.site(site)
        return SiteStats.merge(p.stats[split][name] for p in self.progress)

    def split(self, name: str) -> "CacheSplit":
        """The rows for training ("train") or those of documents kept away from it ("heldout")."""
        if name not in self._splits:
            raise DataError(f"a cache has no split {name!r}; expected 'train' or 'heldout'")
        return self._splits[name]

    def _open_split(self, name: str, folders: Iterable[Folder]) -> "CacheSplit":
        parts = [_Part(f / name, p.rows[name], p.windows[name]) for f, p in zip(folders, self.progress, strict=True)]
        return CacheSplit(self, name, [p for p in parts if p.rows or p.windows])

    @functools.cached_property
    def documents(self) -> "Documents":
        """Token ids of each document that was run, by its number in the corpus."""
        return Documents(self.split(s) for s in SPLITS)

    def document(self, doc: int) -> np.ndarray:
        """Token ids of one document as run (with BOS, EOS and template; cut where the harvest ended), int32 [n]."""
        return self.documents[doc]


class _Part:
    """One writer's rows of one split; arrays are opened when first used."""

    def __init__(self, folder: Folder, rows: int, windows: int):
        self.folder, self.rows, self.windows = folder, rows, windows
        self._opened: dict[str, Any] = {}

    def array(self, name: str) -> Any:
        if name not in self._opened:
            self._opened[name] = self._open(name)
        return self._opened[name]

    def _open(self, name: str) -> Any:
        array = self.folder.open_array(name)
        needed = self.windows if name in ("tokens", "token_doc") else self.rows
        if array.shape[0] < needed:
            raise DataError(
                f"{self.folder}/{name} holds {array.shape[0]} rows, but progress.json says {needed}{REMEDY}"
            )
        return array


class CacheSplit:
    """The rows of one split, numbered from 0 through all parts; see `Cache.split`.

    Attributes:
        cache: what it is a part of.
        name: "train" or "heldout".
        rows: how many there are.
        windows: how many windows of tokens gave them; 0 in a cache without text.
    """

    def __init__(self, cache: Cache, name: str, parts: list[_Part]):
        self.cache, self.name, self._parts = cache, name, parts
        self._row_start = np.cumsum([0, *(p.rows for p in parts)])
        self._window_start = np.cumsum([0, *(p.windows for p in parts)])
        self.rows, self.windows = int(self._row_start[-1]), int(self._window_start[-1])

    def __repr__(self) -> str:
        return f"CacheSplit({self.name!r}, {self.rows} rows of {self.cache.path!r})"

    def d(self, site: str | None = None) -> int:
        """Width of a site."""
        return self.cache.d(site)

    # ------------------------------------------------------------------------------------------------- rows
    def read(self, start: int, stop: int, site: str | None = None) -> np.ndarray:
        """Rows `start` to `stop - 1`, [stop - start, D]: bfloat16 or float32 as stored, float32 from an int8 cache.

        Raises:
            DataError: rows that do not exist, or whose chunk is missing or damaged.
        """
        if not 0 <= start <= stop <= self.rows:
            raise DataError(f"rows {start} to {stop} of {self.name} do not exist: it has {self.rows} rows")
        out = np.empty((stop - start, self.d(site)), self.row_dtype)
        self.read_pieces([(start, stop, out)], site)
        return out

    @property
    def row_dtype(self) -> np.dtype:
        """The type of rows as read."""
        dtype = self.cache.manifest.dtype
        return np.dtype(np.float32) if dtype == "int8" else numpy_dtype(dtype)

    def read_pieces(self, pieces: Sequence[tuple[int, int, np.ndarray]], site: str | None = None) -> None:
        """Reads (start, stop, array that receives the rows) for each piece, all at once."""
        site = self.cache.site(site)
        local = [piece for start, stop, into in pieces for piece in self._by_part(start, stop, into)]
        name = f"{self.name}/{site} of {self.cache.path}"
        if self.cache.manifest.dtype != "int8":
            read_into([(p.array(f"rows/{site}"), a, b, into) for p, a, b, into in local], name)
            return
        codes = [(p.array(f"rows/{site}"), a, b, np.empty(x.shape, np.int8)) for p, a, b, x in local]
        scales = [(p.array(f"scales/{site}"), a, b, np.empty(b - a, np.float32)) for p, a, b, _ in local]
        read_into([*codes, *scales], name)
        for (*_, into), (*_, q), (*_, scale) in zip(local, codes, scales, strict=True):
            dequantise(q, scale, out=into)

    def _by_part(self, start: int, stop: int, into: np.ndarray) -> Iterator[tuple[_Part, int, int, np.ndarray]]:
        for part, first, last in zip(self._parts, self._row_start, self._row_start[1:], strict=False):
            a, b = max(start, int(first)), min(stop, int(last))
            if a < b:
                yield part, a - int(first), b - int(first), into[a - start : b - start]

    def chunks(self) -> tuple[np.ndarray, np.ndarray]:
        """(first row, number of rows) of every stored chunk, each [C] int64; all but a part's last have 64 rows."""
        starts = [np.arange(a, b, CHUNK_ROWS) for a, b in zip(self._row_start, self._row_start[1:], strict=False)]
        ends = [np.minimum(s + CHUNK_ROWS, b) for s, b in zip(starts, self._row_start[1:], strict=False)]
        start = np.concatenate([*starts, np.zeros(0, np.int64)])
        return start, np.concatenate([*ends, np.zeros(0, np.int64)]) - start

    def take(self, rows: np.ndarray, site: str | None = None) -> np.ndarray:
        """Any rows, [N, D], in the order asked for.  For a few thousand rows; a stream is much quicker in bulk."""
        rows = np.asarray(rows, np.int64)
        self._check_rows(rows)
        out = np.empty((len(rows), self.d(site)), self.row_dtype)
        self.read_pieces([(r, r + 1, out[i : i + 1]) for i, r in enumerate(rows.tolist())], site)
        return out

    def batches(self, batch_size: int, site: str | None = None) -> Iterator[np.ndarray]:
        """All rows once, in stored order, [batch_size, D] at a time; the last batch may be shorter."""
        for start in range(0, self.rows, batch_size):
            yield self.read(start, min(start + batch_size, self.rows), site)

    # ------------------------------------------------------------------------------------------------- origins
    def origin(self, rows: np.ndarray) -> Origin:
        """The document and the position in it of each row."""
        return Origin(self._gather("doc", rows), self._gather("position", rows))

    def context(self, rows: np.ndarray) -> Context:
        """The window in which each row was computed, and its place there.

        Raises:
            DataError: the cache was made from arrays, without text.
        """
        length = self._context_size()
        index = self._gather("token_index", rows)
        rows = np.asarray(rows, np.int64)
        part = np.searchsorted(self._row_start, rows, "right") - 1
        window, offset = index // length + self._window_start[part], index % length
        unique, back = np.unique(window, return_inverse=True)
        tokens = np.empty((len(unique), length), np.int32)
        for i, w in enumerate(unique.tolist()):
            tokens[i] = self.read_windows(w, w + 1)[0]
        return Context(tokens[back], offset.astype(np.int64))

    def read_windows(self, start: int, stop: int, array: str = "tokens") -> np.ndarray:
        """Windows of token ids as run, int32 [stop - start, T]; `array="token_doc"` gives each token's document.

        A token whose document is -1 is padding.
        """
        length = self._context_size()
        if not 0 <= start <= stop <= self.windows:
            raise DataError(f"windows {start} to {stop} of {self.name} do not exist: it has {self.windows}")
        out = np.empty((stop - start, length), np.int32)
        pieces = []
        for part, first, last in zip(self._parts, self._window_start, self._window_start[1:], strict=False):
            a, b = max(start, int(first)), min(stop, int(last))
            if a < b:
                pieces.append((part.array(array), a - int(first), b - int(first), out[a - start : b - start]))
        read_into(pieces, f"{self.name}/{array} of {self.cache.path}")
        return out

    def _gather(self, name: str, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows, np.int64)
        self._check_rows(rows)
        if name == "token_index":
            self._context_size()
        out = np.empty(len(rows), np.int64)
        part_of = np.searchsorted(self._row_start, rows, "right") - 1
        for i, part in enumerate(self._parts):
            mine = part_of == i
            if mine.any():
                with explained(f"{self.name}/{name} of {self.cache.path} cannot be read", REMEDY):
                    out[mine] = part.array(name)[rows[mine] - self._row_start[i]].read().result()
        return out

    def _check_rows(self, rows: np.ndarray) -> None:
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.rows:
            raise DataError(f"row {rows.min()} or {rows.max()} of {self.name} does not exist: it has {self.rows} rows")

    def _context_size(self) -> int:
        length = self.cache.manifest.text.get("context_size")
        if not length:
            raise DataError(f"the cache {self.cache.path} was made from arrays: it knows no text for its rows")
        return length


class Documents(Mapping[int, np.ndarray]):
    """Token ids of each document; found by one pass over the tokens, on first use."""

    def __init__(self, splits: Iterable[CacheSplit]):
        self._splits = tuple(splits)

    @functools.cached_property
    def _places(self) -> dict[int, tuple[CacheSplit, int, int]]:
        """Document -> (split, first token, last token + 1)."""
        places = {}
        for split in self._splits:
            owner = split.read_windows(0, split.windows, "token_doc").reshape(-1)
            starts = np.flatnonzero(np.diff(owner, prepend=-2))
            stops = [*starts[1:].tolist(), len(owner)][: len(starts)]
            for a, b in zip(starts.tolist(), stops, strict=True):
                if owner[a] >= 0:
                    places[int(owner[a])] = (split, a, b)
        return places

    def __getitem__(self, doc: int) -> np.ndarray:
        if doc not in self._places:
            raise DataError(f"document {doc} is not in the cache {self._splits[0].cache.path}")
        split, start, stop = self._places[doc]
        length = split._context_size()
        first = start // length
        windows = split.read_windows(first, -(-stop // length)).reshape(-1)
        return windows[start - first * length : stop - first * length]

    def __contains__(self, doc: object) -> bool:
        return doc in self._places

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
