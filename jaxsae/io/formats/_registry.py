"""The formats there are: every module of this folder that has a NAME."""

import functools
import importlib
import os
from pathlib import Path
from typing import Any, Protocol, cast

from jaxsae import config
from jaxsae.errors import FormatError, closest
from jaxsae.io.formats._base import Notes
from jaxsae.io.formats._listing import Listing
from jaxsae.sae import SAE

MAX_FOLDERS = 20_000
#: Files that are a dictionary each.
SEVERAL = r"layer_\d+\.safetensors"


class Format(Protocol):
    """What a module of this folder offers.

    `load` returns a dictionary whose arrays are numpy's; `save` may be absent, then the format is read only.
    `OPTIONS` names facts that its files lack and a caller may give.
    """

    NAME: str
    TITLE: str
    OPTIONS: tuple[str, ...]

    def recognises(self, listing: Listing) -> bool: ...
    def load(self, listing: Listing, options: dict[str, Any]) -> SAE: ...
    def save(self, sae: SAE, path: Path, notes: Notes) -> None: ...


@functools.cache
def formats() -> dict[str, Format]:
    """All formats by name."""
    modules = [importlib.import_module(name) for name in config.load_folder("jaxsae.io.formats")]
    return {m.NAME: cast(Format, m) for m in modules if hasattr(m, "NAME")}


def format_called(name: str, write: bool = False) -> Format:
    """The format of a name.

    Raises:
        FormatError: there is none, or it cannot be written.
    """
    known = formats()
    able = [n for n, f in known.items() if hasattr(f, "save")] if write else list(known)
    if name not in known:
        raise FormatError(f"no format is called {name!r}{closest(name, able)}")
    if name not in able:
        raise FormatError(f"format {name!r} can be read but not written; formats that can: {', '.join(able)}")
    return known[name]


def recognised(listing: Listing) -> list[str]:
    """Names of all formats whose files lie there."""
    return [name for name, f in formats().items() if f.recognises(listing)]


def the_format(listing: Listing) -> Format | None:
    """The one format whose files lie at a path; None if there is none.

    Raises:
        FormatError: several are recognised, or a file that would decide is damaged.
    """
    found = recognised(listing)
    if len(found) > 1:
        raise FormatError(
            f"{str(listing.path)!r}: expected one dictionary, found the files of {' and '.join(found)}; move one of "
            "them elsewhere, or name the one you want with format="
        )
    if not found and listing.errors:
        raise listing.errors[0]
    return formats()[found[0]] if found else None


def find(root: str | os.PathLike[str], damaged: list[FormatError] | None = None) -> list[Path]:
    """Every dictionary below a folder: folders, or files where one folder holds several (circuit-tracer).

    Args:
        root: where to look.
        damaged: gets the error of every folder whose files of weights cannot be read well enough to be recognised.

    Raises:
        FormatError: more than `MAX_FOLDERS` folders.
    """
    found: list[Path] = []
    for count, (folder, inner, _) in enumerate(os.walk(root)):
        if count >= MAX_FOLDERS:
            raise FormatError(f"{str(root)!r}: expected at most {MAX_FOLDERS} folders, found more; name a smaller one")
        inner[:] = sorted(n for n in inner if not n.startswith("."))
        listing = Listing(folder)
        names = recognised(listing)
        if names:
            layers = listing.matching(SEVERAL) if names == ["circuit_tracer"] else []
            found += [Path(folder) / n for n in layers] if len(layers) > 1 else [Path(folder)]
            inner.clear()
        elif listing.errors and damaged is not None:
            damaged.append(listing.errors[0])
    return found
