"""Checkpoints that are wrong in one way each, made from a sound one: what readers of other people's files must refuse.

for variant in variants("sae_lens", folder):      folder: a sound checkpoint, which is copied
    variant.make(target)                           target now holds it with one fault
"""

import io
import json
import os
import pickle
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxsae.io.formats._npz import npz_bytes, open_npz
from jaxsae.io.formats._pt import load_pt, open_pt, pt_bytes
from jaxsae.io.formats._safetensors import chunks, open_safetensors
from jaxsae.io.formats._write import write_file

Change = Callable[[Path], None]


@dataclass(frozen=True)
class Variant:
    """One fault.

    Attributes:
        kind: what sort of fault.
        name: kind, file and key, for a test's id.
        file: the file at fault, which the error must name; "" if it is the folder.
        key: the key at fault, which the error must name, if there is one.
        change: makes the fault in a copy of the checkpoint.
    """

    kind: str
    name: str
    file: str
    key: str
    change: Change

    def make(self, source: Path, target: Path) -> None:
        """Copies the sound checkpoint and makes the fault."""
        shutil.copytree(source, target)
        self.change(target)


@dataclass(frozen=True)
class Spec:
    """What is known of a format's sound example.

    Attributes:
        weights: its files of arrays.
        config: its JSON file, "" if it has none.
        optional: arrays that may be missing, of any dtype, or not finite, without being wrong.
        used: keys of the JSON file that are read; any of them as a list of a list is wrong.
        values: wrong values by key; a key may be dotted.
        required: keys that may not be missing.
        any_width: arrays whose first axis may have any length.
        after: done to the folder after an array was changed, e.g. a digest brought up to date.
    """

    weights: tuple[str, ...]
    config: str = ""
    optional: tuple[str, ...] = ()
    used: tuple[str, ...] = ()
    values: dict[str, list[Any]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    any_width: tuple[str, ...] = ()
    after: Change | None = None


def variants(source: Path, spec: Spec) -> Iterator[Variant]:
    """Every fault of a sound checkpoint."""
    for file in spec.weights:
        yield from _bytes_faults(file)
        yield from _array_faults(source, file, spec)
        suffix = Path(file).suffix
        if suffix == ".pt":
            yield from _pickle_faults(file)
        if suffix in (".pt", ".npz"):
            yield from _zip_faults(file)
        if suffix == ".safetensors":
            yield from _header_faults(file)
        if suffix == ".npz":
            yield from _npy_faults(file)
    if spec.config:
        yield from _json_faults(spec)
    yield Variant("empty folder", "empty folder", "", "", _empty)
    yield Variant("two formats", "two formats", "", "", _second_format)


# ------------------------------------------------------------------------------------------------ bytes
def _constant(text: bytes) -> Callable[[bytes], bytes]:
    return lambda _: text


def _edit(file: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: _rewrite(folder / file, change)


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _bytes_faults(file: str) -> Iterator[Variant]:
    cuts: dict[str, Callable[[bytes], bytes]] = {
        "half": lambda b: b[: len(b) // 2],
        "one byte short": lambda b: b[:-1],
        "one byte": lambda b: b[:1],
        "nothing": lambda b: b"",
    }
    for name, cut in cuts.items():
        yield Variant("truncated", f"truncated to {name}: {file}", file, "", _edit(file, cut))
    yield Variant(
        "not its format", f"text instead of {file}", file, "", _edit(file, lambda b: b"not what it says " * 9)
    )
    yield Variant("not its format", f"zeros instead of {file}", file, "", _edit(file, lambda b: bytes(len(b))))
    if not file.endswith((".pt", ".npz")):
        yield Variant("too long", f"junk behind {file}", file, "", _edit(file, lambda b: b + b"junk"))
    yield Variant(
        "flipped", f"start of {file} flipped", file, "", _edit(file, lambda b: bytes(255 - c for c in b[:9]) + b[9:])
    )


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _second_format(folder: Path) -> None:
    """A small file of another format beside the first."""
    arrays = {"W_enc": np.ones((2, 3)), "W_dec": np.ones((3, 2)), "b_enc": np.ones(3), "b_dec": np.ones(2)}
    other = {"threshold": np.ones(3), **arrays}
    if (folder / "params.npz").exists():
        write_file(folder / "layer_0.safetensors", chunks({n: a.astype(np.float32) for n, a in arrays.items()}))
    else:
        write_file(folder / "params.npz", npz_bytes({n: a.astype(np.float32) for n, a in other.items()}))


# ------------------------------------------------------------------------------------------------ arrays
def read_content(path: Path) -> dict[str, Any]:
    """The arrays (and plain values) of a file of weights."""
    openers: dict[str, Any] = {".safetensors": open_safetensors, ".npz": open_npz, ".pt": open_pt}
    found = openers[path.suffix](path)
    content: dict[str, Any] = {n: e.read() for n, e in found.entries.items()}
    if path.suffix == ".pt":
        stored = load_pt(path)[0]
        content = {n: content.get(n, v) for n, v in stored.items()}
    return content


def write_content(path: Path, content: dict[str, Any]) -> None:
    """Writes them back."""
    if path.suffix == ".pt":
        write_file(path, pt_bytes(content))
    elif path.suffix == ".npz":
        write_file(path, npz_bytes(content))
    else:
        write_file(path, chunks(content))


def _arrays(file: str, change: Callable[[dict[str, Any]], None]) -> Change:
    def apply(folder: Path) -> None:
        content = read_content(folder / file)
        change(content)
        write_content(folder / file, content)

    return apply


def _put(key: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any]], None]:
    def put(content: dict[str, Any]) -> None:
        content[key] = make(content[key])

    return put


def _surplus(content: dict[str, Any]) -> None:
    content["surplus"] = np.ones(3, np.float32)


def _drop(key: str) -> Callable[[dict[str, Any]], None]:
    def drop(content: dict[str, Any]) -> None:
        del content[key]

    return drop


def _array_faults(source: Path, file: str, spec: Spec) -> Iterator[Variant]:
    content = read_content(source / file)
    arrays = {n: a for n, a in content.items() if isinstance(a, np.ndarray)}

    def fault(kind: str, key: str, change: Callable[[dict[str, Any]], None]) -> Variant:
        inner = _arrays(file, change)

        def both(folder: Path) -> None:
            inner(folder)
            if spec.after is not None:
                spec.after(folder)

        named = "" if kind in ("wrong shape", "transposed") else key  # sizes contradict: any of them may be at fault
        return Variant(kind, f"{kind}: {key} of {file}", file, named, both)

    yield fault("extra key", "surplus", _surplus)
    for key, array in arrays.items():
        if key in spec.optional:
            continue
        yield fault("missing key", key, _drop(key))
        yield fault("extra axis", key, _put(key, lambda a: a[None]))
        if array.dtype.kind == "f":
            yield fault("wrong dtype", key, _put(key, lambda a: a.astype(np.int32)))
            yield fault("not finite", key, _put(key, _with(np.nan)))
        if array.ndim and key not in spec.any_width:
            yield fault("wrong shape", key, _put(key, lambda a: a[:-1]))
        if array.ndim:
            yield fault("empty axis", key, _put(key, lambda a: a[:0]))
        if array.ndim == 2 and array.shape[0] != array.shape[1]:
            yield fault("transposed", key, _put(key, lambda a: a.T.copy()))


def _with(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def put(a: np.ndarray) -> np.ndarray:
        a = a.copy()
        a.reshape(-1)[a.size // 2] = value
        return a

    return put


# ------------------------------------------------------------------------------------------------ safetensors
def _overlap(table: dict) -> None:
    """All arrays at the first one's place."""
    entries = [v for k, v in table.items() if k != "__metadata__"]
    if len(entries) == 1:  # nothing to overlap with: a hole instead
        entries[0]["data_offsets"] = [n + 4 for n in entries[0]["data_offsets"]]
    for entry in entries[1:]:
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        entry["data_offsets"] = [entries[0]["data_offsets"][0], entries[0]["data_offsets"][0] + size]


def _header_faults(file: str) -> Iterator[Variant]:
    def with_header(change: Callable[[dict], Any]) -> Change:
        def apply(raw: bytes) -> bytes:
            n = int.from_bytes(raw[:8], "little")
            table = json.loads(raw[8 : 8 + n])
            found = change(table)
            text = json.dumps(table if found is None else found).encode()
            return len(text).to_bytes(8, "little") + text + raw[8 + n :]

        return _edit(file, apply)

    def first(table: dict) -> dict:
        return next(v for k, v in table.items() if k != "__metadata__")

    faults: dict[str, Callable[[dict], Any]] = {
        "dtype unknown": lambda t: first(t).update(dtype="F1024"),
        "dtype a number": lambda t: first(t).update(dtype=7),
        "shape huge": lambda t: first(t).update(shape=[2**40, 2**40]),
        "shape negative": lambda t: first(t).update(shape=[-4, -16]),
        "offsets past the end": lambda t: first(t).update(data_offsets=[0, 2**50]),
        "offsets reversed": lambda t: first(t).update(data_offsets=first(t)["data_offsets"][::-1]),
        "offsets overlap": _overlap,
        "entry without shape": lambda t: first(t).pop("shape") and None,
        "a list": lambda t: [t],
    }
    for name, change in faults.items():
        yield Variant("header", f"header: {name}: {file}", file, "", with_header(change))
    long = _edit(file, lambda b: (2**63 - 1).to_bytes(8, "little") + b[8:])
    yield Variant("header", f"header: endless: {file}", file, "", long)
    deep = b"[" * 40_000
    nested = _edit(file, lambda b: (len(deep)).to_bytes(8, "little") + deep + b)
    yield Variant("header", f"header: nested: {file}", file, "", nested)


# ------------------------------------------------------------------------------------------------ pickles and zips
def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive in memory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


class _Runs:
    """Unpickling this with the pickle module would create a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        import pathlib

        return pathlib.Path.touch, (pathlib.Path(self.path),)


#: The file that a malicious pickle would create.
PROOF = os.path.join(tempfile.gettempdir(), "jaxsae-malformed-proof")


def _pickle_faults(file: str) -> Iterator[Variant]:
    def with_pickle(data: bytes) -> Change:
        return _edit(file, lambda b: zip_of({"archive/data.pkl": data, "archive/version": b"3\n"}))

    storage = b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"

    def tensor(size: bytes, shape: bytes, strides: bytes) -> bytes:
        call = b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + size + b"tQK\x00" + shape + strides
        return b"\x80\x02}X\x01\x00\x00\x00a" + call + b"\x89}tRs."

    faults = {
        "runs code": pickle.dumps({"encoder.weight": _Runs(PROOF)}, 2),
        "runs code, protocol 4": pickle.dumps({"encoder.weight": _Runs(PROOF)}, 4),
        "os.system": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00trueq\x00\x85R.",
        "eval": b"\x80\x02cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R.",
        "getattr chain": b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
        "instance": b"(ios\nsystem\n.",
        "a list, not a dict": b"\x80\x02]K\x01a.",
        "no stop": b"\x80\x02}",
        "empty stack": b"\x80\x02.",
        "memo out of reach": b"\x80\x02}r\xff\xff\xff\x7fj\x01\x00\x00\x00.",
        "endless text": b"\x80\x02X\xff\xff\xff\xff.",
        "tensor beyond its storage": tensor(b"K\x04", b"K\x08\x85", b"K\x01\x85"),
        "tensor of one number repeated": tensor(b"K\x04", b"J\x00\x00\x00\x40\x85", b"K\x00\x85"),
        "tensor without numbers": tensor(b"K\x04", b"K\x04\x85", b"K\x01\x85"),
        "nested without end": b"\x80\x02" + b"]q\x00" + b"(h\x00h\x00h\x00e]h\x00aq\x00" * 500 + b".",
    }
    for name, data in faults.items():
        yield Variant("pickle", f"pickle: {name}: {file}", file, "", with_pickle(data))


def _zip_faults(file: str) -> Iterator[Variant]:
    inner = "archive/data.pkl" if file.endswith(".pt") else "W_enc.npy"
    bomb = zip_of({inner: bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    yield Variant("zip bomb", f"zip bomb: {file}", file, "", _edit(file, lambda b: bomb))

    def lying(raw: bytes) -> bytes:
        """The directory declares a small size for a member that unpacks to much more."""
        data = bytearray(bomb)
        at = data.rindex(b"PK\x01\x02")
        data[at + 24 : at + 28] = struct.pack("<I", 100)
        return bytes(data)

    yield Variant("zip bomb", f"zip bomb that lies about its size: {file}", file, "", _edit(file, lying))
    empty = zip_of({})
    yield Variant("zip", f"zip without members: {file}", file, "", _edit(file, lambda b: empty))


def _npy_faults(file: str) -> Iterator[Variant]:
    def saved(**arrays: Any) -> Callable[[bytes], bytes]:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return lambda b: buffer.getvalue()

    objects = np.array([{"a": 1}], dtype=object)
    plain = {n: np.ones((4, 4), np.float32) for n in ("W_enc", "W_dec", "b_enc", "b_dec")}
    yield Variant("pickle", f"pickled array: {file}", file, "threshold", _edit(file, saved(threshold=objects, **plain)))
    big = np.ones((4, 4), ">f4")
    yield Variant("wrong dtype", f"big-endian: {file}", file, "threshold", _edit(file, saved(threshold=big, **plain)))
    fortran = np.asfortranarray(np.arange(12.0, dtype=np.float32).reshape(3, 4))
    yield Variant("header", f"Fortran order: {file}", file, "threshold", _edit(file, saved(threshold=fortran, **plain)))


# ------------------------------------------------------------------------------------------------ JSON
def _json_faults(spec: Spec) -> Iterator[Variant]:
    file = spec.config
    texts = {
        "not JSON": b"{'architecture': standard,}",
        "empty": b"",
        "a list": b"[1, 2]",
        "a key twice": b'{"a": 1, "a": 2}',
        "nested without end": b'{"a":' * 50_000,
        "not text": b"\xff\xfe\x00\x01",
        "a number of many digits": b'{"a": ' + b"9" * 5000 + b"}",
    }
    for name, text in texts.items():
        yield Variant("JSON", f"JSON: {name}: {file}", file, "", _edit(file, _constant(text)))
    for key in spec.required:
        yield Variant("missing key", f"missing key: {key} of {file}", file, key.split(".")[-1], _without(file, key))
    for key in spec.used:
        yield Variant("wrong type", f"wrong type: {key} of {file}", file, key.split(".")[-1], _set(file, key, [[1]]))
    for key, values in spec.values.items():
        for value in values:
            name = f"wrong value: {key} = {json.dumps(value)[:30]} of {file}"
            yield Variant("wrong value", name, "", "", _set(file, key, value))


def _json(file: str, change: Callable[[dict], None]) -> Change:
    def apply(folder: Path) -> None:
        data = json.loads((folder / file).read_text())
        change(data)
        (folder / file).write_text(json.dumps(data))

    return apply


def _inside(data: dict, key: str) -> tuple[dict, str]:
    *path, last = key.split(".")
    for part in path:
        data = data[part]
    return data, last


def _set(file: str, key: str, value: Any) -> Change:
    def change(data: dict) -> None:
        where, last = _inside(data, key)
        where[last] = value

    return _json(file, change)


def _without(file: str, key: str) -> Change:
    def change(data: dict) -> None:
        where, last = _inside(data, key)
        del where[last]

    return _json(file, change)
