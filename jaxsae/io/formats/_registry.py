"""The formats there are: every module of this folder that has a NAME."""

import functools
import importlib
from pathlib import Path
from typing import Any, Protocol, cast

from jaxsae import config
from jaxsae.errors import FormatError, closest
from jaxsae.io.formats._base import Notes
from jaxsae.io.formats._listing import Listing
from jaxsae.sae import SAE


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


def the_format(listing: Listing) -> Format:
    """The one format whose files lie at a path.

    Raises:
        FormatError: none or several are recognised.
    """
    found = recognised(listing)
    if len(found) == 1:
        return formats()[found[0]]
    if found:
        raise FormatError(
            f"{str(listing.path)!r}: expected one dictionary, found the files of {' and '.join(found)}; move one of "
            "them elsewhere, or name the one you want with format="
        )
    if listing.errors:
        raise listing.errors[0]
    shown = ", ".join(sorted(listing.files)[:8]) or "nothing"
    raise FormatError(
        f"{str(listing.path)!r}: expected the files of a known format ({', '.join(formats())}), found {shown}"
        + _inside(listing)
    )


def _inside(listing: Listing) -> str:
    """A hint at the subfolders that could have been meant."""
    if listing.focus:
        return ""
    able = []
    for folder in sorted(p for p in listing.root.iterdir() if p.is_dir())[:64]:
        try:
            if recognised(Listing(folder)):
                able.append(folder.name)
        except FormatError:
            continue
    return f"; did you mean its folder {able[0]!r}?" if able else ""
