"""What a command has found, as a JSON file: a place that cannot be written is refused before the work, not after it."""

import os
from collections.abc import Mapping
from typing import Any

from jaxsae.errors import ConfigError
from jaxsae.train.run_dir import make_folder_of, write_json


def check_place(path: str) -> None:
    """Makes the folder of a file that is to be written at the end; nothing if there is no path.

    Raises:
        ConfigError: the file will not be writable.
    """
    if not path or "://" in path:
        return
    make_folder_of(path)
    if os.path.isdir(path):
        raise ConfigError(f"{path!r} is a folder, expected the name of a file; add one")
    if not os.access(os.path.dirname(path) or ".", os.W_OK):
        raise ConfigError(f"{path!r} cannot be written: its folder is read-only; choose another place")


def write_result(path: str, result: Mapping[str, Any]) -> None:
    """Writes a result whole, on a disk or behind a URL; nothing if there is no path.

    Raises:
        CheckpointError: it cannot be written.
        ConfigError: its folder cannot be made.
    """
    if path:
        write_json(path, result)
