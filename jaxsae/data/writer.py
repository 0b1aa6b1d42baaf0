"""Appends blocks of rows to a cache so that a kill at any moment loses at most the block under way."""

import collections
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxsae.data.manifest import SPLITS, Manifest, Progress, arrays, part_folder, read_manifest
from jaxsae.data.shuffle import permutation
from jaxsae.data.store import REMEDY, Folder, explained
from jaxsae.errors import DataError

_IN_FLIGHT = 4  # shards being written at once; more only hold more memory


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows of one split, in the order of the text; the writer shuffles them.

    Attributes:
        rows: site -> activations [N, D], float32 or bfloat16.
        doc: document of each row, [N].
        position: index of each row's token among the tokens of its document, [N].
        token_index: index of each row's token in `tokens.reshape(-1)` of this block, [N]; this and what follows is None
            for a cache without text.
        tokens: windows as run, [W, T].
        token_doc: document of each of these tokens, -1 for padding, [W, T].
    """

    rows: Mapping[str, np.ndarray]
    doc: np.ndarray
    position: np.ndarray
    token_index: np.ndarray | None = None
    tokens: np.ndarray | None = None
    token_doc: np.ndarray | None = None


class CacheWriter:
    """One part of a cache, made new or gone on with.

    Args:
        path: the cache's folder or URL.
        manifest: what the cache is to be; has to equal the manifest of a cache that is already there.
        part: which of `manifest.parts` this process writes.

    Raises:
        DataError: another cache, or other files, are in the folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = CacheWriter(folder, Manifest(sites=(("x", 4),)))
        ...     rows = np.ones((100, 4), np.float32)
        ...     writer.commit({"train": Block({"x": rows}, np.zeros(100), np.arange(100))})
        ...     writer.finish()
        ...     writer.progress.rows["train"]
        100
    """

    def __init__(self, path: str | os.PathLike, manifest: Manifest, part: int = 0):
        self.manifest, self.part, self.folder = manifest, part, Folder(path)
        if not 0 <= part < manifest.parts:
            raise DataError(
                f"part {part} is not one of the {manifest.parts} parts of this cache (0 to {manifest.parts - 1})"
            )
        claim(path, manifest)
        self._folder = part_folder(self.folder, part)
        found = Progress.read(self._folder)
        self._folder.remove_leftovers()
        self.progress = found or Progress.fresh(manifest)
        self._columns = {s: self._open(self._folder / s, s, fresh=found is None) for s in SPLITS}

    def _open(self, folder: Folder, split: str, fresh: bool) -> dict[str, "_Column"]:
        columns = {}
        for name, (width, dtype, shard, chunk) in arrays(self.manifest).items():
            if fresh:
                array = folder.create_array(name, width, dtype, shard, chunk, self.manifest.compression)
            else:
                array = folder.open_array(name, write=True)
            counts = self.progress.windows if name in ("tokens", "token_doc") else self.progress.rows
            columns[name] = _Column(array, f"{folder}/{name}", counts[split], shard)
        return columns

    def commit(
        self,
        blocks: Mapping[str, Block],
        cursor: dict[str, Any] | None = None,
        dropped: Mapping[str, int] | None = None,
    ) -> None:
        """Shuffles each split's rows, appends them, and makes them exist.

        Args:
            blocks: by split; a split may be missing.
            cursor: where to go on after this block; see `Progress`.
            dropped: rows left out of this block, by reason; added to the counts.

        Raises:
            DataError: rows that are not finite (nothing is written), or a store that cannot be written to (what was
                committed before stays as it is).
        """
        new = self.progress.copy()
        jobs = []
        for split, block in blocks.items():
            self._check(block)
            jobs += [(self._columns[split][name], a) for name, a in self._stored(split, block, new).items()]
            new.rows[split] += len(block.doc)
            new.windows[split] += 0 if block.tokens is None else len(block.tokens)
        for reason, count in (dropped or {}).items():
            new.dropped[reason] = new.dropped.get(reason, 0) + count
        new.blocks, new.cursor = new.blocks + 1, cursor
        _write_all(jobs)
        self._save(new)
        for column, data in jobs:
            column.grow(data)
        self.progress = new

    def finish(self) -> None:
        """Records that nothing is left to do."""
        if not self.progress.done:
            self._save(dataclasses.replace(self.progress, done=True))
            self.progress.done = True

    def reopen(self) -> None:
        """Takes `finish` back, to go on with a larger aim."""
        self.progress.done = False

    def _save(self, progress: Progress) -> None:
        self._folder.write_json("progress.json", progress.to_json())

    def _check(self, block: Block) -> None:
        for site, width in self.manifest.sites:
            found = None if site not in block.rows else block.rows[site].shape
            if found != (len(block.doc), width):
                raise DataError(f"rows of {site!r} have shape {found}, expected ({len(block.doc)}, {width})")

    def _stored(self, split: str, block: Block, new: Progress) -> dict[str, np.ndarray]:
        """The block as its arrays hold it, rows shuffled; counts the rows into the new statistics."""
        key = (self.part, new.blocks, SPLITS.index(split))
        order = permutation(len(block.doc), self.manifest.seed, "rows", *key)
        out: dict[str, np.ndarray] = {}
        for site, _ in self.manifest.sites:
            rows = block.rows[site][order]
            if self.manifest.dtype == "int8":
                rows, out[f"scales/{site}"] = quantise(rows)
                seen = dequantise(rows, out[f"scales/{site}"])
            else:
                seen = rows = rows.astype(numpy_dtype(self.manifest.dtype), copy=False)
            if bad := new.stats[split][site].add(seen):
                raise DataError(
                    f"{bad} of {len(rows)} rows at {site!r} hold NaN or infinity ({split} rows from "
                    f"{new.rows[split]} on) and were not written; look at the host's precision or at the input"
                )
            out[f"rows/{site}"] = rows
        out["doc"] = block.doc[order].astype(np.int32)
        out["position"] = block.position[order].astype(np.int32)
        if block.tokens is not None and block.token_doc is not None and block.token_index is not None:
            before = new.windows[split] * block.tokens.shape[1]
            out["token_index"] = block.token_index[order].astype(np.int64) + before
            out["tokens"], out["token_doc"] = block.tokens.astype(np.int32), block.token_doc.astype(np.int32)
        return out


def quantise(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [N, D] as 8-bit integers and one scale [N] each: `x ~ q * scale`, `scale = max |x| / 127`.

    The error of a value is at most half its row's scale.
    """
    x = rows.astype(np.float32)
    scale = np.abs(x).max(1, initial=0.0) / np.float32(127)
    with np.errstate(invalid="ignore"):  # a row that is not finite gets a scale that is not
        q = np.rint(x / np.where(scale == 0, 1, scale)[:, None]).astype(np.int8)
    return q, scale.astype(np.float32)


def dequantise(q: np.ndarray, scale: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The rows that `quantise` stands for, float32 [N, D]."""
    with np.errstate(invalid="ignore"):
        return np.multiply(q, scale[:, None], out=out, dtype=np.float32)


def numpy_dtype(name: str) -> np.dtype:
    """The type of a stored value; bfloat16 is not numpy's own."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def claim(path: str | os.PathLike, manifest: Manifest) -> None:
    """Writes the manifest, or compares it with the one that is there.

    Raises:
        DataError: another cache, or other files, are in the folder.
    """
    folder = Folder(path)
    if folder.read_json("manifest.json") is None:
        if not folder.is_empty():
            raise DataError(f"{folder} holds other files and no cache; name a new or an empty folder")
        folder.write_json("manifest.json", manifest.to_json())
        return
    found = read_manifest(folder)
    differences = found.differences(manifest)
    if differences and found.parts == 1 and Progress.read(part_folder(folder, 0)) is None:
        folder.write_json("manifest.json", manifest.to_json())  # nothing was harvested under the old one
    elif differences:
        shown = "; ".join(differences[:5]) + ("; ..." if len(differences) > 5 else "")
        raise DataError(
            f"the cache in {folder} is another one than asked for (there | asked): {shown}; "
            "name another folder, or ask for the same"
        )


class _Column:
    """One array that grows.  Its last file may be part full: it is written again, whole, with the next rows."""

    def __init__(self, array: Any, name: str, rows: int, shard: int):
        self.array, self.name, self.rows, self.shard = array, name, rows, shard
        with explained(f"the last of {rows} rows of {name} cannot be read", REMEDY):
            self.tail = np.array(array[rows // shard * shard : rows].read().result())

    def resize(self, added: int) -> Any:
        """Sets the length to what is written now: a killed writer may have left it longer."""
        shape = [self.rows + added, *self.array.shape[1:]]
        return self.array.resize(exclusive_max=shape, resize_metadata_only=True)

    def pieces(self, data: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of each file to write, from the part full one on."""
        first = self.shard - len(self.tail)
        yield self.rows - len(self.tail), np.concatenate([self.tail, data[:first]])
        for offset in range(first, len(data), self.shard):
            yield self.rows + offset, data[offset : offset + self.shard]

    def grow(self, data: np.ndarray) -> None:
        """Takes note that these rows exist."""
        self.rows += len(data)
        length = self.rows % self.shard
        self.tail = np.array(data[len(data) - length :]) if length <= len(data) else np.concatenate([self.tail, data])


def _write_all(jobs: list[tuple[_Column, np.ndarray]]) -> None:
    """Writes every column's new rows; returns when all are on the disk."""
    waiting: collections.deque[tuple[_Column, Any]] = collections.deque()

    def wait() -> None:
        column, future = waiting.popleft()
        with explained(f"{column.name} cannot be written"):
            future.result()

    for column, data in jobs:
        if not len(data):
            continue
        with explained(f"{column.name} cannot be written"):
            column.array = column.resize(len(data)).result()
        for start, piece in column.pieces(data):
            waiting.append((column, column.array[start : start + len(piece)].write(piece)))
            if len(waiting) >= _IN_FLIGHT:
                wait()
    while waiting:
        wait()
