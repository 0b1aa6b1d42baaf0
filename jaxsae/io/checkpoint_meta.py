"""What a checkpoint says about itself, and how that is checked before any array is read."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from jaxsae.errors import CheckpointError
from jaxsae.io import digest
from jaxsae.typing import PyTree

FORMAT, FORMAT_VERSION = "jaxsae.checkpoint", 1


class Damaged(Exception):
    """This checkpoint cannot be trusted; an older one may."""


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says about itself.

    Attributes:
        step: updates done.
        config: the configuration, as plain data with type tags.
        progress: where the run stands beyond its state (stream position, seconds, ...), as plain data.
        leaves: path -> {"shape", "dtype", "digest"} of every array.
    """

    step: int
    config: dict[str, Any]
    progress: dict[str, Any]
    leaves: dict[str, dict[str, Any]]


def describe(flat: dict[str, Any], digests: dict[str, str]) -> dict[str, dict[str, Any]]:
    """`Meta.leaves` of arrays by path."""
    return {p: {"shape": list(x.shape), "dtype": str(x.dtype), "digest": digests[p]} for p, x in flat.items()}


def seal(step: int, config: Mapping, progress: Mapping, leaves: dict) -> dict[str, Any]:
    """The plain data to write: all of `Meta`, format and version, and a digest of the whole."""
    body = {"format": FORMAT, "format_version": FORMAT_VERSION, "step": step}
    body |= {"config": dict(config), "progress": dict(progress), "leaves": leaves}
    return body | {"sha256": _sha256(body)}


def _sha256(body: Mapping) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def unseal(stored: Any, step: int, folder: str) -> Meta:
    """The `Meta` that was written for the checkpoint of `step`.

    Raises:
        Damaged: it is not what was written.
        CheckpointError: it is of a format version that this program does not know.
    """
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise Damaged("its metadata is not that of a jaxsae checkpoint")
    version = stored.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {step} in {folder!r} has format version {version!r}, this program knows {FORMAT_VERSION}; "
            f"install a jaxsae that knows it"
        )
    if stored.get("sha256") != _sha256({k: v for k, v in stored.items() if k != "sha256"}):
        raise Damaged("its metadata does not match its digest")
    if stored["step"] != step:
        raise Damaged(f"its folder was renamed: it is of step {stored['step']}")
    return Meta(stored["step"], stored["config"], stored["progress"], stored["leaves"])


def check_leaves(meta: Meta, target: PyTree, folder: str) -> None:
    """Finds a misfit before Orbax sees it, whose own account of it runs over pages.

    Raises:
        CheckpointError: naming the first leaf that is not as the target wants it.
    """
    wanted = {path: (list(x.shape), str(x.dtype)) for path, x in digest.flatten(target).items()}
    stored = {path: (leaf["shape"], leaf["dtype"]) for path, leaf in meta.leaves.items()}
    for path in wanted.keys() | stored.keys():
        if wanted.get(path) != stored.get(path):
            raise CheckpointError(
                f"checkpoint {meta.step} in {folder!r} is of another model: for {path!r} expected "
                f"{_signature(wanted.get(path))}, found {_signature(stored.get(path))}; "
                f"use the configuration it was saved with, or another folder"
            )


def _signature(leaf: tuple[list[int], str] | None) -> str:
    return "nothing" if leaf is None else f"{leaf[1]}{leaf[0]}"
