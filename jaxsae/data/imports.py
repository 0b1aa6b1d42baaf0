"""Activations that people already have, into a cache: `.npy`, `.safetensors`, `.pt`."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxsae.data.corpora import fingerprint
from jaxsae.data.manifest import Dtype, Manifest
from jaxsae.data.shuffle import heldout
from jaxsae.data.writer import Block, CacheWriter
from jaxsae.errors import ConfigError, DataError, closest

Paths = str | os.PathLike | Sequence[str | os.PathLike]


def import_arrays(
    paths: Paths | Mapping[str, Paths],
    out: str | os.PathLike,
    *,
    site: str = "activations",
    key: str | None = None,
    d_in: int | None = None,
    dtype: Dtype = "bfloat16",
    group: int = 256,
    heldout_fraction: float = 0.05,
    seed: int = 0,
    shuffle_rows: int = 32768,
    host: Mapping[str, Any] | None = None,
    say: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Writes a cache from files of activations; goes on where it was if it was interrupted.

    Args:
        paths: one file, or several that follow each other; or site -> file(s), for several sites with equal rows.
            Arrays have shape [N, D], or [..., D], which is read as rows.  Files are mapped, not loaded.
        out: folder or URL of the cache.
        site: what to call the site, where `paths` names none.
        key: which tensor of a `.safetensors` or `.pt` file with several.
        d_in: the width expected, checked where it is given.
        dtype: how rows are stored.
        group: rows that follow each other and count as one document: rows of one group are not divided between
            training and held-out rows.  Choose it at least as long as the texts.  A row's origin is
            (row // group, row % group).
        heldout_fraction: share of the groups that is held out.
        seed: of the split and the shuffle.
        shuffle_rows: rows that are shuffled together; what a kill loses at most.
        host: the `identity` of the model they come from, if known.
        say: called with (rows done, rows in all) after every block.

    Returns:
        Rows by split.

    Raises:
        DataError: a file is missing, damaged, of an unexpected shape, or holds NaN or infinity.
        ConfigError: an unknown suffix or an impossible argument.

    Example:
        >>> import_arrays("acts.npy", "runs/acts", site="blocks.9.hook_resid_post")  # doctest: +SKIP
        {'train': 95232, 'heldout': 4768}
    """
    named = dict(paths) if isinstance(paths, Mapping) else {site: paths}
    files = {name: _as_paths(p) for name, p in named.items()}
    arrays = {name: _Rows([_open(p, key) for p in ps], ps) for name, ps in files.items()}
    counts = {name: len(a) for name, a in arrays.items()}
    if len(set(counts.values())) != 1:
        raise DataError(f"sites must have equally many rows, found {counts}")
    for name, a in arrays.items():
        if d_in is not None and a.width != d_in:
            raise DataError(f"{files[name][0]} holds rows of width {a.width}, expected {d_in}")
    if group < 1 or shuffle_rows < 1:
        raise ConfigError(f"group and shuffle_rows must be 1 or more, found {group} and {shuffle_rows}")
    count = next(iter(counts.values()))
    manifest = Manifest(
        sites=tuple((name, a.width) for name, a in arrays.items()),
        dtype=dtype,
        seed=seed,
        heldout_fraction=heldout_fraction,
        host=dict(host or {}),
        corpus={
            "name": "imported arrays",
            "files": {name: [p.name for p in ps] for name, ps in files.items()},
            "digest": fingerprint([p for ps in files.values() for p in ps], key or ""),
            "group": group,
            "block_rows": shuffle_rows,
        },
    )
    return _copy(CacheWriter(out, manifest), arrays, count, say)


def _copy(writer: CacheWriter, arrays: "Mapping[str, _Rows]", count: int, say: Any) -> dict[str, int]:
    corpus = writer.manifest.corpus
    group, step = corpus["group"], corpus["block_rows"]
    held = heldout(-(-count // group), writer.manifest.heldout_fraction, writer.manifest.seed)
    done = (writer.progress.cursor or {"rows": 0})["rows"]
    for start in range(done, count, step):
        index = np.arange(start, min(start + step, count))
        rows = {name: a.read(start, start + len(index)) for name, a in arrays.items()}
        blocks = {}
        for split, mask in (("train", ~held[index // group]), ("heldout", held[index // group])):
            if mask.any():
                mine = index[mask]
                blocks[split] = Block({n: x[mask] for n, x in rows.items()}, mine // group, mine % group)
        writer.commit(blocks, {"rows": start + len(index)})
        if say:
            say(start + len(index), count)
    writer.finish()
    return dict(writer.progress.rows)


@dataclasses.dataclass
class _Rows:
    """Several arrays read as one list of rows."""

    arrays: list[np.ndarray]
    paths: list[pathlib.Path]

    def __post_init__(self) -> None:
        for a, path in zip(self.arrays, self.paths, strict=True):
            if a.ndim < 2 or not a.size:
                raise DataError(f"{path} holds an array of shape {list(a.shape)}, expected [N, D] with N and D above 0")
            if not (np.issubdtype(a.dtype, np.floating) or a.dtype.name == "bfloat16"):
                raise DataError(f"{path} holds {a.dtype} values, expected floating point")
        self.arrays = [a.reshape(-1, a.shape[-1]) for a in self.arrays]
        widths = {str(p): a.shape[1] for p, a in zip(self.paths, self.arrays, strict=True)}
        if len(set(widths.values())) != 1:
            raise DataError(f"files of one site must hold rows of one width, found {widths}")
        self.width = next(iter(widths.values()))

    def __len__(self) -> int:
        return sum(map(len, self.arrays))

    def read(self, start: int, stop: int) -> np.ndarray:
        """A copy of some rows."""
        out, at = [], 0
        for a in self.arrays:
            part = a[max(0, start - at) : max(0, stop - at)]
            at += len(a)
            out.append(np.asarray(part, np.float32 if part.dtype == np.float64 else None))
        return np.concatenate(out)


def _as_paths(paths: Paths) -> list[pathlib.Path]:
    many = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    out = [pathlib.Path(p).expanduser() for p in many]
    if not out:
        raise ConfigError("no file was named; expected .npy, .safetensors or .pt files")
    for path in out:
        if not path.is_file():
            raise DataError(f"{path} does not exist; expected a file of activations")
    return out


def _open(path: pathlib.Path, key: str | None) -> np.ndarray:
    """The array in a file, mapped into memory.  Nothing in a file is executed."""
    readers = {".npy": _open_npy, ".safetensors": _open_safetensors, ".pt": _open_torch, ".pth": _open_torch}
    if path.suffix not in readers:
        raise ConfigError(f"{path} is of no known kind; expected {', '.join(readers)}")
    try:
        return readers[path.suffix](path, key)
    except (DataError, ConfigError):
        raise
    except Exception as e:  # three libraries, each with its own errors
        raise DataError(f"{path} cannot be read as {path.suffix}: {' '.join(str(e).split())[:200]}") from e


def _open_npy(path: pathlib.Path, key: str | None) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _open_safetensors(path: pathlib.Path, key: str | None) -> np.ndarray:
    """One tensor, mapped: 8 bytes with the header's length, a JSON header, then the values."""
    import ml_dtypes

    types = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    size = path.stat().st_size
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if not 0 < length <= size - 8:
            raise DataError(f"{path} is damaged or no safetensors file: its header does not fit into it")
        header = json.loads(f.read(length))
    header.pop("__metadata__", None)
    name = _choose(path, list(header), key)
    info = header[name]
    if info["dtype"] not in types:
        raise DataError(f"{path} holds {info['dtype']} values under {name!r}, expected {', '.join(types)}")
    dtype, (first, last) = np.dtype(types[info["dtype"]]), info["data_offsets"]
    if last - first != math.prod(info["shape"]) * dtype.itemsize or 8 + length + last > size:
        raise DataError(f"{path} is cut off: {name!r} needs {8 + length + last} bytes, the file has {size}")
    values = np.memmap(path, np.uint8, "r", 8 + length + first, (last - first,))
    return values.view(dtype).reshape(info["shape"])


def _open_torch(path: pathlib.Path, key: str | None) -> np.ndarray:
    try:
        import torch
    except ImportError as e:
        raise ConfigError(f"{path} needs PyTorch to be read; pip install 'jaxsae[torch]'") from e
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if isinstance(found, dict):
        found = found[_choose(path, [k for k, v in found.items() if isinstance(v, torch.Tensor)], key)]
    if not isinstance(found, torch.Tensor):
        raise DataError(f"{path} holds a {type(found).__name__}, expected a tensor or a dictionary of tensors")
    found = found.detach().contiguous()
    if found.dtype == torch.bfloat16:
        import ml_dtypes

        return found.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return found.numpy()


def _choose(path: pathlib.Path, names: list, key: str | None) -> Any:
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        raise DataError(
            f"{path} holds {len(names)} tensors and none called {key!r}{closest(str(key), names)}; name one"
        )
    return key
