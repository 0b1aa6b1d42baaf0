"""Our own format: `sae.safetensors` holds every array under its own name, `sae.json` says what they mean."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

import jaxsae
from jaxsae import config
from jaxsae.errors import ConfigError, FormatError
from jaxsae.io.formats._arrays import all_finite
from jaxsae.io.formats._base import Config, Notes, bad
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._safetensors import chunks, open_safetensors
from jaxsae.io.formats._write import as_json, write_beside, writing
from jaxsae.io.placement import letters_of
from jaxsae.sae import SAE, Rank, check_shapes

NAME = "jaxsae"
TITLE = "jaxsae folder"
OPTIONS: tuple[str, ...] = ()
VERSION = 1
WEIGHTS, DESCRIPTION = "sae.safetensors", "sae.json"
#: A new description waits under this name while the weights change places.
NEXT = ".sae.json.next"
KINDS = ("float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
#: What the description holds, and the kind of class each must be.
SLOTS = {
    "norm": "norm.",
    "encoder": "encode.",
    "dictionary": "dictionary.",
    "readout": "readout.",
    "rows": "row_shape",
    "meta": "sae.meta",
}


def recognises(listing: Listing) -> bool:
    """`sae.json` with our name in it, or beside `sae.safetensors`."""
    return DESCRIPTION in listing and (WEIGHTS in listing or listing.has_key(DESCRIPTION, "format_version"))


def load(listing: Listing, options: dict[str, Any]) -> SAE:
    """Reads the folder; the digest of the weights is compared while they are read."""
    described = listing.config(DESCRIPTION)
    _check_version(described)
    arrays, digest = _read(listing.root / WEIGHTS)
    waiting = listing.root / NEXT
    if described.part("weights").text("sha256") != digest and waiting.is_file():
        described = Config.read(waiting)  # the save was interrupted between its two renames
    wanted = described.part("weights").text("sha256")
    if wanted != digest:
        bad(listing.root / WEIGHTS, None, f"weights with sha256 {wanted}", f"{digest}: they were altered or damaged")
    return _build(listing.root / DESCRIPTION, described, arrays)


def _check_version(described: Config) -> None:
    if described.text("format") != NAME:
        described.fail("format", NAME, described["format"])
    version = described.integer("format_version")
    if version != VERSION:
        described.fail("format_version", f"{VERSION}, the one this jaxsae {jaxsae.__version__} reads", version)


def _read(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """All arrays of a file and its sha256, from one pass over the bytes."""
    digest = hashlib.sha256()
    arrays = open_safetensors(path, update=digest.update)
    found = {}
    for name in arrays:
        found[name] = arrays.take(name, arrays[name].shape, KINDS, finite=False)
        _check_numbers(path, name, found[name])
    return found, digest.hexdigest()


def _check_numbers(path: Path, name: str, array: np.ndarray) -> None:
    """NaN never, infinity only in thresholds: a latent whose threshold is infinite is off."""
    if not all_finite(array) and (not name.startswith("threshold") or np.isnan(array).any()):
        bad(path, name, "finite numbers", "NaN or infinity")


def _build(file: Path, described: Config, arrays: dict[str, np.ndarray]) -> SAE:
    parts: dict[str, Any] = {}
    for name, kind in SLOTS.items():
        tag = described.part(name).text("type")
        if not tag.startswith(kind):
            described.fail(f"{name}.type", f"a class {kind}*", tag)
        try:
            parts[name] = config.from_dict(dict(described.part(name)), Any, name)
        except (ConfigError, TypeError) as e:
            raise FormatError(f"file {str(file)!r}: key {name!r}: {e}") from e
    try:
        params: dict[str, Any] = dict(arrays)
        sae = SAE(params, **parts)
        check_shapes(sae)
        _check_arrays(file.parent / WEIGHTS, sae)
    except (ConfigError, AttributeError, TypeError) as e:
        raise FormatError(f"file {str(file)!r} and its weights do not fit together: {e}") from e
    return sae


def _check_arrays(path: Path, sae: SAE) -> None:
    """Exactly the arrays that the slots declare, all floating but k."""
    names = [*letters_of(sae)] + ["k"] * _ranks(sae.encoder)
    for name in names:
        if name not in sae.params:
            bad(path, name, "an array of this name", "none")
    for name, array in sae.params.items():
        if name not in names:
            bad(path, name, "only the arrays " + ", ".join(names), "this one too")
        if name == "k" and array.shape != ():
            bad(path, name, "one number", f"shape {list(array.shape)}")
        if name != "k" and array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            bad(path, name, "a floating dtype", array.dtype.name)


def _ranks(member: Any) -> bool:
    """Whether a slot member holds a ranking, which reads k."""
    if isinstance(member, Rank):
        return "k" in getattr(member.rule, "reads", ("k",))
    inner = dataclasses.fields(member) if dataclasses.is_dataclass(member) else ()
    return any(_ranks(getattr(member, f.name)) for f in inner)


def save(sae: SAE, path: Path, notes: Notes) -> None:
    """Writes the folder: both files in full first; then the weights take their place, the description last."""
    digest = hashlib.sha256()
    for name, array in sae.params.items():
        _check_numbers(path / WEIGHTS, name, np.asarray(array))
    weights = write_beside(path / WEIGHTS, chunks(sae.params), digest.update)
    described = {
        "format": NAME,
        "format_version": VERSION,
        "written_by": f"jaxsae {jaxsae.__version__}",
        "weights": {"file": WEIGHTS, "sha256": digest.hexdigest()},
        **{name: config.to_dict(getattr(sae, name)) for name in SLOTS},
    }
    with writing(path):
        description = write_beside(path / NEXT, as_json(described))
        description.replace(path / NEXT)
        weights.replace(path / WEIGHTS)
        (path / NEXT).replace(path / DESCRIPTION)
