"""Writing files so that an interrupted save leaves what was there before."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from jaxsae.errors import FormatError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the operating system says about a full disk or a forbidden folder into one sentence.

    Raises:
        FormatError: instead of OSError.
    """
    try:
        yield
    except OSError as e:
        raise FormatError(
            f"{str(path)!r} could not be written: {e.strerror or e}; what was there before is intact; check the free "
            "space and the permissions"
        ) from e


def part_of(path: Path) -> Path:
    """The name under which a file is written before it takes its place."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write_beside(path: Path, pieces: Iterable[bytes | memoryview], update: Callable | None = None) -> Path:
    """Writes and syncs `path`'s content under a temporary name in the same folder; the caller renames it."""
    temporary = part_of(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as f:
                for piece in pieces:
                    f.write(piece)
                    if update is not None:
                        update(piece)
                f.flush()
                os.fsync(f.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return temporary


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Writes one file; readers see the old content or the new, never half of it.

    Raises:
        FormatError: it cannot be written.
    """
    temporary = write_beside(path, pieces)
    with writing(path):
        os.replace(temporary, path)


def free_bytes(path: Path) -> int:
    """Free space of the disk that holds `path` or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def write_files(folder: Path, files: Mapping[str, Iterable[bytes | memoryview]]) -> None:
    """Writes several files of one checkpoint: all of them in full first, then each takes its place, in order.

    Raises:
        FormatError: one of them cannot be written; none has then been replaced.
    """
    ready: list[tuple[Path, Path]] = []
    try:
        for name, pieces in files.items():
            ready.append((write_beside(folder / name, pieces), folder / name))
        with writing(folder):
            for temporary, final in ready:
                os.replace(temporary, final)
    finally:
        for temporary, _ in ready:
            temporary.unlink(missing_ok=True)


def as_json(data: object) -> list[bytes]:
    """The pieces of a JSON file."""
    return [json.dumps(data, indent=2, ensure_ascii=False).encode() + b"\n"]
