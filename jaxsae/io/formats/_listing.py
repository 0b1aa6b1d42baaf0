"""What lies at a path, read lazily: names, tables of contents, configurations.  Formats are told apart by these."""

import os
import re
from functools import cached_property
from pathlib import Path

from jaxsae.errors import FormatError
from jaxsae.io.formats._arrays import Arrays
from jaxsae.io.formats._base import Config, bad
from jaxsae.io.formats._npz import open_npz
from jaxsae.io.formats._pt import open_pt
from jaxsae.io.formats._safetensors import open_safetensors

#: Folders inside a checkpoint's folder whose files belong to it.
INNER = ("checkpoints",)
WEIGHTS = (".safetensors", ".npz", ".pt")
MAX_FILES = 20_000


class Listing:
    """The files of one checkpoint.

    Args:
        path: a folder, or one file of weights (then the other weights beside it are left out of sight).

    Raises:
        FormatError: nothing is there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        if not path.exists():
            raise FormatError(f"{str(path)!r}: expected a folder or a file, found nothing; check the path")
        if path.is_file() and path.suffix not in WEIGHTS:
            path = path.parent
        self.path = path
        inner = path.parent.name in INNER and path.is_file()
        self.root = path if path.is_dir() else path.parent.parent if inner else path.parent
        self.focus = path.relative_to(self.root).as_posix() if path.is_file() else None
        self.errors: list[FormatError] = []
        self._arrays: dict[str, Arrays] = {}
        self._configs: dict[str, Config] = {}

    @cached_property
    def files(self) -> frozenset[str]:
        """Names relative to the root, those of `checkpoints/` included."""
        names = set()
        try:
            for folder in ("", *INNER):
                if not (self.root / folder).is_dir():
                    continue
                for entry in os.scandir(self.root / folder):
                    if entry.is_file() and not entry.name.startswith("."):
                        names.add(f"{folder}/{entry.name}" if folder else entry.name)
                    if len(names) > MAX_FILES:
                        bad(self.root, None, f"a checkpoint's folder of at most {MAX_FILES} files", "more")
        except OSError as e:
            bad(self.root, None, "a readable folder", e.strerror or str(e))
        if self.focus:
            names = {n for n in names if n == self.focus or ("/" not in n and not n.endswith(WEIGHTS))}
        return frozenset(names)

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def matching(self, pattern: str) -> list[str]:
        """Names that match a regular expression in full, those with numbers in numeric order."""
        found = [n for n in self.files if re.fullmatch(pattern, n)]
        return sorted(found, key=lambda n: ([int(d) for d in re.findall(r"\d+", n)], n))

    def arrays(self, name: str) -> Arrays:
        """The table of contents of a file of weights (`.safetensors`, `.npz`, `.pt`).

        Raises:
            FormatError: it is damaged, or is not what its name says.
        """
        if name not in self._arrays:
            if name not in self.files:
                bad(self.root / name, None, "a file of weights", "nothing")
            openers = {".safetensors": open_safetensors, ".npz": open_npz, ".pt": open_pt}
            self._arrays[name] = openers[os.path.splitext(name)[1]](self.root / name)
        return self._arrays[name]

    def keys(self, name: str) -> frozenset[str]:
        """The names of arrays and plain values in a file; none if it is missing or damaged (see `errors`)."""
        if name not in self.files:
            return frozenset()
        try:
            found = self.arrays(name)
        except FormatError as e:
            self.errors.append(e)
            return frozenset()
        return frozenset(found.entries) | frozenset(found.scalars)

    def config(self, name: str) -> Config:
        """A JSON file.

        Raises:
            FormatError: it is missing, or is not a JSON object.
        """
        if name not in self._configs:
            if name not in self.files:
                bad(self.root / name, None, "a JSON file", "nothing")
            self._configs[name] = Config.read(self.root / name)
        return self._configs[name]

    def has_key(self, name: str, key: str) -> bool:
        """Whether a JSON file is there, can be read, and has a top-level key."""
        try:
            return key in self.config(name)
        except FormatError:
            return False
