"""Folders of arrays and small JSON files, on a disk or in a bucket, through TensorStore.

Everything a cache reads or writes passes through here, so that `/path`, `file://`, `gs://`, `s3://` and `memory://`
behave alike and every failure becomes one sentence.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxsae.errors import DataError, JaxsaeError

#: Rows per chunk: what a reader fetches at once and a checksum covers.
CHUNK_ROWS = 64
_FULL = ("No space left", "File too large", "quota exceeded", "error 27", "error 28", "error 122")


@functools.cache
def _context() -> Any:
    """One context for the process: no cache of chunks (each is read once), files mapped rather than read.

    Mapping saves the buffer that every read would allocate: 1.4 times the rate for 512-KiB chunks.
    """
    import tensorstore as ts

    try:
        return ts.Context({"cache_pool": {"total_bytes_limit": 0}, "file_io_mode": {"mode": "memmap"}})
    except ValueError:  # an older TensorStore
        return ts.Context({"cache_pool": {"total_bytes_limit": 0}})


class Folder:
    """A folder on a local disk or under a TensorStore URL.

    Args:
        path: a local path, or a URL such as `gs://bucket/acts`, `s3://bucket/acts`, `memory://acts`.
    """

    def __init__(self, path: str | os.PathLike):
        text = os.fspath(path)
        text = text.removeprefix("file://")
        self.remote = "://" in text
        self.path = text.rstrip("/") if self.remote else str(pathlib.Path(text).expanduser().absolute())

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.path}/{name}")

    def __str__(self) -> str:
        return self.path

    @property
    def local(self) -> pathlib.Path | None:
        """The path on this machine's file system, or None."""
        return None if self.remote else pathlib.Path(self.path)

    def _kvstore(self) -> Any:
        return f"{self.path}/" if self.remote else {"driver": "file", "path": f"{self.path}/"}

    def _files(self) -> Any:
        import tensorstore as ts

        return ts.KvStore.open(self._kvstore(), context=_context()).result()

    # ------------------------------------------------------------------------------------------------- small files
    def read_json(self, name: str) -> dict | None:
        """The content of a file that `write_json` wrote, or None if there is none.

        Raises:
            DataError: not readable, not JSON, or its digest does not fit its content.
        """
        with explained(f"{self}/{name} cannot be read"):
            found = self._files().read(name).result()
        if found.state == "missing":
            return None
        damaged = f"{self}/{name} is damaged (expected JSON with a matching digest)"
        try:
            data = json.loads(found.value)
            digest = data.pop("digest")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise DataError(f"{damaged}; restore it from a copy, or make the cache again elsewhere") from None
        if digest != _digest(data):
            raise DataError(f"{damaged}; restore it from a copy, or make the cache again elsewhere")
        return data

    def write_json(self, name: str, data: dict) -> None:
        """Replaces a file in one step: a reader sees the old content or the new one, never a part."""
        text = json.dumps({**data, "digest": _digest(data)}, indent=1, sort_keys=True)
        with explained(f"{self}/{name} cannot be written"):
            self._files().write(name, text.encode()).result()

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None if there is none."""
        with explained(f"{self}/{name} cannot be read"):
            found = self._files().read(name).result()
        return None if found.state == "missing" else bytes(found.value)

    def write(self, name: str, data: bytes) -> None:
        """Replaces a file in one step: a reader sees the old content or the new one, never a part."""
        self.begin_write(name, data)()

    def begin_write(self, name: str, data: bytes) -> Callable[[], None]:
        """Starts to replace a file in one step; what is returned waits until it is done."""
        what = f"{self}/{name} cannot be written"
        with explained(what):
            future = self._files().write(name, data)

        def wait() -> None:
            with explained(what):
                future.result()

        return wait

    def names(self, within: str = "") -> list[str]:
        """Names of all files of the folder, or of those of its subfolder `within`, as seen from this folder."""
        with explained(f"{self} cannot be listed"):
            return sorted(n.decode() for n in self._files().list(_below(within)).result())

    def delete(self, name: str) -> None:
        """Deletes a file, or with a name that ends in "/" a whole subfolder; nothing there is no error."""
        with explained(f"{self}/{name} cannot be deleted"):
            if name.endswith("/"):
                self._files().delete_range(_below(name.removesuffix("/"))).result()
            else:
                self._files().write(name, None).result()

    def is_empty(self) -> bool:
        """True if nothing is in the folder, or it does not exist."""
        local = self.local
        if local is not None:
            return not local.exists() or (local.is_dir() and not any(local.iterdir()))
        with explained(f"{self} cannot be listed"):
            return not self._files().list().result()

    def free_bytes(self) -> int | None:
        """Room left on the disk the folder is (or will be) on; None for a remote store."""
        path = self.local
        if path is None:
            return None
        while not path.exists() and path != path.parent:
            path = path.parent
        return shutil.disk_usage(path).free

    def remove_leftovers(self) -> None:
        """Removes the temporary files of writes that were killed (local folders only)."""
        for lock in self.local.rglob("*.__lock") if self.local else ():
            lock.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------- arrays
    def create_array(
        self, name: str, width: tuple[int, ...], dtype: str, shard: int, chunk: int, compression: str = "none"
    ) -> Any:
        """A new array [0, *width] that grows along its first axis, in place of any of that name.

        Zarr version 3 with `sharding_indexed`: `shard` rows per file, `chunk` rows per checksum (crc32c).
        """
        import tensorstore as ts

        codecs: list[dict] = [{"name": "bytes", "configuration": {"endian": "little"}}]
        if compression == "zstd":
            codecs.append({"name": "zstd", "configuration": {"level": 1}})
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": [chunk, *width],
            "codecs": [*codecs, {"name": "crc32c"}],
            "index_codecs": index,
            "index_location": "end",
        }
        grid = {"name": "regular", "configuration": {"chunk_shape": [shard, *width]}}
        metadata = {
            "shape": [0, *width],
            "data_type": dtype,
            "chunk_grid": grid,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        }
        spec = {**self._array(name), "metadata": metadata}
        with explained(f"{self}/{name} cannot be created"):
            return ts.open(spec, create=True, delete_existing=True, context=_context()).result()

    def begin_plain(self, name: str, shape: Sequence[int], dtype: str, piece: Sequence[int]) -> Callable[[], None]:
        """Starts to make a new array of fixed shape, one object per piece; Zarr version 3.

        What is returned waits until it is there.
        """
        import tensorstore as ts

        grid = {"name": "regular", "configuration": {"chunk_shape": list(piece)}}
        spec = {**self._array(name), "metadata": {"shape": list(shape), "data_type": dtype, "chunk_grid": grid}}
        future = ts.open(spec, create=True, context=_context())

        def wait() -> None:
            with explained(f"{self}/{name} cannot be created"):
                future.result()

        return wait

    def open_array(self, name: str, write: bool = False) -> Any:
        """An existing array."""
        import tensorstore as ts

        with explained(f"the array {self}/{name} cannot be opened"):
            return ts.open(self._array(name), open=True, read=True, write=write, context=_context()).result()

    def _array(self, name: str) -> dict:
        # By default a missing chunk reads as zeros, and so a chunk of zeros is not stored.  Neither here: what is
        # missing is an error, and zeros are data.
        strict = {"fill_missing_data_reads": False, "store_data_equal_to_fill_value": True}
        return {"driver": "zarr3", "kvstore": (self / name)._kvstore(), **strict}


def _below(within: str) -> Any:
    """The range of the names below a subfolder; of all names, if it is ""."""
    import tensorstore as ts

    return ts.KvStore.KeyRange(f"{within}/", f"{within}0") if within else ts.KvStore.KeyRange()  # "0" follows "/"


@contextlib.contextmanager
def local_copy(folder: Folder, skip: Sequence[str] = ()) -> Iterator[pathlib.Path]:
    """The files of a folder behind a URL in a temporary folder, as long as the block lasts.

    Args:
        folder: where they are.
        skip: names of subfolders that are left out.

    Raises:
        DataError: there is nothing, or it cannot be read.  Errors inside the block name the URL instead of the copy.
    """
    names = [n for n in folder.names() if n.partition("/")[0] not in skip]
    if not names:
        raise DataError(f"there is nothing at {str(folder)!r}; check the URL")
    with tempfile.TemporaryDirectory(prefix="jaxsae-") as parent:
        copy = pathlib.Path(parent) / folder.path.rpartition("/")[2]  # what is read may be called after its folder
        for name in names:
            file = copy / name
            if copy.resolve() not in file.resolve().parents:
                raise DataError(f"{folder}/{name} leads out of its folder; expected plain names, delete that object")
            data = folder.read(name) or b""
            with explained(f"{folder} cannot be copied to {parent!r}"):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
        try:
            yield copy
        except JaxsaeError as e:
            raise type(e)(str(e).replace(str(copy), str(folder))) from e


def _digest(data: dict) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def explained(what: str, then: str = "") -> Iterator[None]:
    """Turns TensorStore's and the system's failures inside the block into one `DataError`."""
    try:
        yield
    except DataError:
        raise
    except (ValueError, OSError, RuntimeError, NotImplementedError) as e:
        raise DataError(f"{what}: {_reason(str(e))}{then}") from e


def _reason(text: str) -> str:
    """The core of a TensorStore message, without its technical tail."""
    found = re.search(r'local file "([^"]+)"', text)
    where = f"{found[1].removesuffix('.__lock')} " if found else ""
    if any(sign in text for sign in _FULL):
        return "the disk is full; make room there and run the same command again: it goes on where it was"
    if "Digest mismatch" in text or "DATA_LOSS" in text:
        return f"{where or 'its file '}is damaged (its checksum does not fit its content)"
    if "is not valid for value of size" in text:
        return f"{where or 'its file '}is cut off"
    if "NOT_FOUND" in text:
        return f"{where or 'its file '}is missing"
    return re.sub(r"\s*\[\w+='.*", "", text, flags=re.DOTALL)[:300]


def read_into(pieces: Sequence[tuple[Any, int, int, np.ndarray]], name: str) -> None:
    """Fills arrays from a store, one request per piece, all at once.

    Args:
        pieces: (store, first row, last row + 1, array that receives them).
        name: what is being read, for messages.
    """
    import tensorstore as ts

    waiting = [(start, stop, ts.array(into).write(a[start:stop])) for a, start, stop, into in pieces]
    for start, stop, future in waiting:
        with explained(f"rows {start} to {stop - 1} of {name} cannot be read", REMEDY):
            future.result()


REMEDY = "; restore that file from a copy, or make the cache again in a new folder"
