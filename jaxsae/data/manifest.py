"""The two JSON files of a cache: what it is (fixed when it is made) and how much of it there is.

    manifest.json                       what was harvested, from what, how: see `Manifest`
    parts/part-00000/progress.json      rows that exist, statistics, where to go on: see `Progress`
    parts/part-00000/train/...          arrays, see `arrays`

Only progress.json says how many rows exist.  It is replaced in one step after the rows are on the disk, so whatever
else a killed writer left behind is never read.
"""

import dataclasses
import json
from typing import Any, Literal

from jaxsae.data.stats import SiteStats
from jaxsae.data.store import CHUNK_ROWS, Folder
from jaxsae.errors import DataError

FORMAT = "jaxsae.cache"
FORMAT_VERSION = 1
SPLITS = ("train", "heldout")
Dtype = Literal["bfloat16", "float32", "int8"]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a cache is.  Two caches with equal manifests hold the same rows.

    Attributes:
        sites: (name, width) of each site, in the order in which a batch stacks them.
        dtype: how rows are stored; "int8" means one float32 scale per row beside 8-bit values.
        seed: of the document order, the split and the row shuffle.
        heldout_fraction: share of the documents that went to the held-out rows.
        host: the host model's `identity`, or {} for imported arrays.
        text: how text became windows (context size, packing, BOS, EOS, chat template, what was dropped), or {}.
        corpus: name and digest of the documents.
        parts: number of writers; each has its own folder.
        shard_rows: rows per file.
        compression: "none" or "zstd".
    """

    sites: tuple[tuple[str, int], ...]
    dtype: Dtype = "bfloat16"
    seed: int = 0
    heldout_fraction: float = 0.0
    host: dict[str, Any] = dataclasses.field(default_factory=dict)
    text: dict[str, Any] = dataclasses.field(default_factory=dict)
    corpus: dict[str, Any] = dataclasses.field(default_factory=dict)
    parts: int = 1
    shard_rows: int = 0
    compression: str = "none"

    def __post_init__(self) -> None:
        if not self.shard_rows:
            object.__setattr__(self, "shard_rows", default_shard_rows(max(d for _, d in self.sites), self.itemsize))

    @property
    def itemsize(self) -> int:
        """Bytes per stored value."""
        return {"bfloat16": 2, "float32": 4, "int8": 1}[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes per row, all sites, with what is stored beside it."""
        scales = 4 * len(self.sites) if self.dtype == "int8" else 0
        return sum(d for _, d in self.sites) * self.itemsize + scales + 16

    def to_json(self) -> dict:
        """What manifest.json holds."""
        fields = dataclasses.asdict(self) | {"sites": [list(s) for s in self.sites]}
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **fields}

    def differences(self, other: "Manifest") -> list[str]:
        """`key: this | other` for everything in which two manifests differ, what the host is called aside."""
        mine, theirs = (_flat(json.loads(json.dumps(m.to_json()))) for m in (self, other))
        keys = [*mine, *(k for k in theirs if k not in mine)]
        keys = [k for k in keys if k != "host.name" and mine.get(k) != theirs.get(k)]
        return [f"{k}: {mine.get(k)!r} | {theirs.get(k)!r}" for k in keys]


def default_shard_rows(width: int, itemsize: int) -> int:
    """Rows that make a file of about 32 MiB: a power of two, at least one chunk."""
    rows = max(CHUNK_ROWS, (32 << 20) // (width * itemsize))
    return 1 << (rows.bit_length() - 1)


def arrays(manifest: Manifest) -> dict[str, tuple[tuple[int, ...], str, int, int]]:
    """Name -> (shape of a row, dtype, rows per file, rows per chunk) of every array of one split.

    Per row: the site's activation (`rows/SITE`, with `scales/SITE` for int8), `doc` and `position` (index into the
    tokens of that document), `token_index` (index into all tokens as run).  Per window of tokens as run: `tokens`,
    and the document of each token, `token_doc` (-1 for padding).
    """
    shard = manifest.shard_rows
    out: dict[str, tuple[tuple[int, ...], str, int, int]] = {}
    for site, width in manifest.sites:
        out[f"rows/{site}"] = ((width,), manifest.dtype, shard, CHUNK_ROWS)
        if manifest.dtype == "int8":
            out[f"scales/{site}"] = ((), "float32", shard, CHUNK_ROWS)
    small = 1 << 16
    out |= {"doc": ((), "int32", small, 4096), "position": ((), "int32", small, 4096)}
    context = manifest.text.get("context_size")
    if context:
        windows = CHUNK_ROWS * max(1, 8192 // context)
        out["token_index"] = ((), "int64", small, 4096)
        out |= dict.fromkeys(("tokens", "token_doc"), ((context,), "int32", windows, CHUNK_ROWS))
    return out


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of a cache.

    Raises:
        DataError: there is no cache, or it is of a format this version does not know.
    """
    data = folder.read_json("manifest.json")
    if data is None:
        raise DataError(
            f"{folder} holds no activation cache (manifest.json is missing); make one with `jaxsae harvest`"
        )
    found, version = data.pop("format", None), data.pop("format_version", None)
    if found != FORMAT:
        raise DataError(f"{folder}/manifest.json is of the format {found!r}, expected {FORMAT!r}; check the path")
    _check_version(folder, version)
    names = {f.name for f in dataclasses.fields(Manifest)}
    if set(data) != names:
        odd = sorted(set(data) ^ names)
        raise DataError(f"{folder}/manifest.json has other keys than format version {version}: {', '.join(odd)}")
    return Manifest(**{**data, "sites": tuple((name, width) for name, width in data["sites"])})


def _check_version(folder: Folder, version: Any) -> None:
    if version != FORMAT_VERSION:
        raise DataError(
            f"the cache {folder} has format version {version!r}, this jaxsae knows version {FORMAT_VERSION}; "
            "read it with the version that wrote it, or harvest again"
        )


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix: data}
    out: dict[str, Any] = {}
    for key, value in data.items():
        out |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return out


# ---------------------------------------------------------------------------------------------------------- progress
@dataclasses.dataclass
class Progress:
    """How far one part is.

    Attributes:
        rows: rows that exist, by split.
        windows: windows of tokens that exist, by split.
        blocks: commits so far; the index of the next shuffle.
        done: nothing is left to harvest.
        cursor: where the harvest goes on; its content belongs to whoever writes.
        dropped: rows left out, by reason.
        stats: statistics of the rows that exist, by split and site.
    """

    rows: dict[str, int]
    windows: dict[str, int]
    blocks: int
    done: bool
    cursor: dict[str, Any] | None
    dropped: dict[str, int]
    stats: dict[str, dict[str, SiteStats]]

    @classmethod
    def fresh(cls, manifest: Manifest) -> "Progress":
        """Nothing yet."""
        stats = {s: {name: SiteStats.empty(d) for name, d in manifest.sites} for s in SPLITS}
        return cls(dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0), 0, False, None, {}, stats)

    def copy(self) -> "Progress":
        """One that can be changed without changing this one."""
        stats = {split: {name: s.copy() for name, s in sites.items()} for split, sites in self.stats.items()}
        rows, windows, dropped = dict(self.rows), dict(self.windows), dict(self.dropped)
        return dataclasses.replace(self, rows=rows, windows=windows, dropped=dropped, stats=stats)

    def to_json(self) -> dict:
        """What progress.json holds."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        stats = {split: {name: s.to_json() for name, s in sites.items()} for split, sites in self.stats.items()}
        return {"format_version": FORMAT_VERSION, **plain, "stats": stats}

    @classmethod
    def read(cls, folder: Folder) -> "Progress | None":
        """The progress of the part in a folder, or None if nothing was committed there."""
        data = folder.read_json("progress.json")
        if data is None:
            return None
        _check_version(folder, data.pop("format_version", None))
        stats = {
            split: {name: SiteStats.from_json(s) for name, s in sites.items()} for split, sites in data["stats"].items()
        }
        return cls(**{**data, "stats": stats})


def part_folder(folder: Folder, part: int) -> Folder:
    """Where the writer number `part` writes."""
    return folder / "parts" / f"part-{part:05d}"
