"""npz archives: every size is held against the file before anything is read; pickled arrays are refused."""

import ast
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxsae.io.formats._arrays import FLOATS, Arrays, Entry, aligned, file_size, read_at
from jaxsae.io.formats._base import bad

#: A member that unpacks to more than this many times the whole file is taken for a bomb: weights do not compress.
MAX_RATIO = 2
MAX_NPY_HEADER = 16 * 1024
CHUNK = 2**20
_LOCAL = struct.Struct("<4sHHHHHIIIHH")


def members(path: Path) -> list[zipfile.ZipInfo]:
    """The members of a zip archive, their sizes checked.

    Raises:
        FormatError: not a zip archive, a name that stands twice, encryption, a compression other than deflate, or
            members that together unpack to more than twice the file.
    """
    size = file_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, UnicodeError) as e:
        bad(path, None, "a zip archive", f"something else ({e})")
    seen: set[str] = set()
    total = 0
    for info in infos:
        if info.filename in seen:
            bad(path, info.filename, "each member once", "a member that stands twice")
        seen.add(info.filename)
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            bad(path, info.filename, "a stored or deflated member", f"compression {info.compress_type}")
        total += info.file_size
    if total > MAX_RATIO * size + 65536:
        bad(path, None, f"members of at most {MAX_RATIO} times the file's {size} bytes", f"{total} bytes unpacked")
    return infos


def data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """The byte at which a member's data start.

    Raises:
        FormatError: the local header is not where the directory says, or the data run past the end.
    """
    with open(path, "rb") as f:
        f.seek(info.header_offset)
        raw = f.read(_LOCAL.size)
    if len(raw) < _LOCAL.size or raw[:4] != b"PK\x03\x04":
        bad(path, info.filename, f"a member at byte {info.header_offset}", "none")
    *_, name, extra = _LOCAL.unpack(raw)
    start = info.header_offset + _LOCAL.size + name + extra
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        bad(path, info.filename, f"a stored member of {info.file_size} bytes", f"{info.compress_size} bytes")
    if start + info.compress_size > file_size(path):
        bad(path, info.filename, f"{info.compress_size} bytes from byte {start}", "the end of the file")
    return start


def unpack(path: Path, info: zipfile.ZipInfo, most: int | None = None) -> bytes:
    """A whole member, never more bytes than the directory declares.

    Raises:
        FormatError: it unpacks to another size or checksum than declared, or is longer than `most`.
    """
    if most is not None and info.file_size > most:
        bad(path, info.filename, f"at most {most} bytes", f"{info.file_size}")
    start = data_offset(path, info)
    with open(path, "rb") as f:
        f.seek(start)
        raw = f.read(info.compress_size)
    if info.compress_type == zipfile.ZIP_DEFLATED:
        try:
            raw = zlib.decompressobj(-15).decompress(raw, info.file_size + 1)
        except zlib.error as e:
            bad(path, info.filename, "deflated data", f"damage ({e})")
    if len(raw) != info.file_size or zlib.crc32(raw) != info.CRC:
        bad(path, info.filename, f"{info.file_size} bytes with checksum {info.CRC:08x}", "other data: damaged")
    return raw


def open_npz(path: Path) -> Arrays:
    """The arrays of an npz archive.

    Raises:
        FormatError: a member that is no array, is pickled, or whose header contradicts its size.
    """
    entries = {}
    for info in members(path):
        if not info.filename.endswith(".npy"):
            bad(path, info.filename, "members that are arrays (.npy)", "this one too")
        entries[info.filename.removesuffix(".npy")] = _entry(path, info)
    return Arrays(path, entries)


def _entry(path: Path, info: zipfile.ZipInfo) -> Entry:
    if info.compress_type == zipfile.ZIP_STORED:
        start = data_offset(path, info)
        with open(path, "rb") as f:
            f.seek(start)
            head = f.read(min(info.file_size, MAX_NPY_HEADER))
        dtype, shape, skip = _npy_header(path, info, head)

        def read() -> np.ndarray:
            return read_at(path, start + skip, shape, dtype)
    else:
        packed = zlib.decompressobj(-15)
        with open(path, "rb") as f:
            f.seek(data_offset(path, info))
            try:
                head = packed.decompress(f.read(min(info.compress_size, MAX_NPY_HEADER)), MAX_NPY_HEADER)
            except zlib.error as e:
                bad(path, info.filename, "deflated data", f"damage ({e})")
        dtype, shape, skip = _npy_header(path, info, head)

        def read() -> np.ndarray:
            return _inflate(path, info, skip, shape, dtype)

    return Entry(dtype, shape, read)


def _inflate(path: Path, info: zipfile.ZipInfo, skip: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A deflated array, unpacked chunk by chunk into its own memory."""
    out = aligned(shape, dtype)
    view, at, crc = out.reshape(-1).view(np.uint8).data, -skip, 0
    packed = zlib.decompressobj(-15)
    with open(path, "rb") as f:
        f.seek(data_offset(path, info))
        raw = f.read(min(CHUNK, info.compress_size))
        left = info.compress_size - len(raw)
        try:
            while at < len(view):
                piece = packed.decompress(raw, CHUNK)
                raw = packed.unconsumed_tail
                if not raw and left:
                    raw = f.read(min(CHUNK, left))
                    left -= len(raw)
                if not piece and (packed.eof or not raw):
                    break
                crc = zlib.crc32(piece, crc)
                start = max(0, -at)
                view[max(0, at) : at + len(piece)] = piece[start : len(view) - at] if at + len(piece) > 0 else b""
                at += len(piece)
        except (zlib.error, ValueError) as e:
            bad(path, info.filename, "deflated data", f"damage ({e})")
    if at != len(view) or crc != info.CRC:
        bad(path, info.filename, f"{info.file_size} bytes with checksum {info.CRC:08x}", "other data: damaged")
    return out


def _npy_header(path: Path, info: zipfile.ZipInfo, head: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    name = info.filename
    if head[:6] != b"\x93NUMPY" or len(head) < 12 or head[6] not in (1, 2, 3):
        bad(path, name, "an array in npy format", "something else")
    width = 2 if head[6] == 1 else 4
    length = int.from_bytes(head[8 : 8 + width], "little")
    skip = 8 + width + length
    if skip > len(head):
        bad(path, name, f"an npy header of {length} bytes", "fewer")
    try:
        table = ast.literal_eval(head[8 + width : skip].decode("latin1").strip())
        descr, fortran, shape = table["descr"], table["fortran_order"], table["shape"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        bad(path, name, "an npy header with descr, fortran_order and shape", "something else")
    if not isinstance(descr, str) or "O" in descr:
        bad(path, name, "an array of numbers", f"dtype {descr!r} (objects would be pickled)")
    if fortran is not False and len(shape) > 1:
        bad(path, name, "an array in C order", "one in Fortran order")
    try:
        dtype = np.dtype(descr)
    except (TypeError, ValueError, SyntaxError):
        bad(path, name, "a dtype numpy knows", descr)
    if dtype.kind not in "fiub" or dtype.byteorder == ">":
        bad(path, name, "a little-endian dtype among " + ", ".join(FLOATS), descr)
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
        bad(path, name, "a shape of whole numbers", shape)
    if skip + math.prod(shape) * dtype.itemsize != info.file_size:
        bad(path, name, f"{math.prod(shape) * dtype.itemsize} bytes for shape {list(shape)}", info.file_size - skip)
    return dtype, shape, skip


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """The bytes of an npz archive of stored members, piece by piece."""
    return stored_zip((f"{name}.npy", [_npy_head(a), _bytes_of(a)]) for name, a in arrays.items())


def _bytes_of(a: Any) -> memoryview:
    return np.ascontiguousarray(a).reshape(-1).view(np.uint8).data


def _npy_head(a: np.ndarray) -> bytes:
    text = repr({"descr": np.lib.format.dtype_to_descr(a.dtype), "fortran_order": False, "shape": tuple(a.shape)})
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def stored_zip(
    files: Iterable[tuple[str, list[bytes | memoryview]]], alignment: int = 1
) -> Iterator[bytes | memoryview]:
    """A zip archive of uncompressed members; sizes beyond 4 GiB use the 64-bit fields.

    Args:
        files: (name, pieces) of each member.
        alignment: every member's data start at a multiple of it.
    """
    at, directory = 0, b""
    count = 0
    for name, pieces in files:
        size, crc = sum(len(p) for p in pieces), 0
        for piece in pieces:
            crc = zlib.crc32(piece, crc)
        wide = struct.pack("<HHQQ", 1, 16, size, size) if size >= 2**32 - 1 else b""
        small = 2**32 - 1 if wide else size
        raw = name.encode()
        gap = -(at + 30 + len(raw) + len(wide) + 4) % alignment
        padding = struct.pack("<HH", 0x4246, gap) + b"Z" * gap if alignment > 1 else b""
        fields = struct.pack("<HHHHHIII", 45 if wide else 20, 0x800, 0, 0, 0x21, crc, small, small)
        head = b"PK\x03\x04" + fields + struct.pack("<HH", len(raw), len(wide) + len(padding)) + raw + wide + padding
        yield head
        yield from pieces
        far = at >= 2**32 - 1
        if wide or far:
            extra = (struct.pack("<QQ", size, size) if wide else b"") + (struct.pack("<Q", at) if far else b"")
            extra = struct.pack("<HH", 1, len(extra)) + extra
        else:
            extra = b""
        directory += b"PK\x01\x02" + struct.pack("<H", 45) + fields
        directory += struct.pack("<HHHHHII", len(raw), len(extra), 0, 0, 0, 0, 2**32 - 1 if far else at) + raw + extra
        at += len(head) + size
        count += 1
    yield directory
    if at + len(directory) >= 2**32 - 1:
        yield struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), at)
        yield struct.pack("<4sIQI", b"PK\x06\x07", 0, at + len(directory), 1)
    near = min(at, 2**32 - 1)
    yield struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, min(len(directory), 2**32 - 1), near, 0)
