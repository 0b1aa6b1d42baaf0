"""The folder of one run: where its parts lie, and that only one process writes into it."""

import contextlib
import json
import math
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxsae import parallel
from jaxsae.data.store import Folder
from jaxsae.errors import CheckpointError, ConfigError, DataError
from jaxsae.train.mirror import Mirror


class RunDir:
    """Paths of a run:

        README.md       what lies here, and how to go on
        config.yaml     the configuration, resolved, with type tags
        log.jsonl       one JSON object per line
        checkpoints/    <step>/
        sae/            the exported dictionary
        train.json      summary written at the end
        tensorboard/    event files, where asked for
        profile/        profiler trace of chosen steps, where asked for
        members/        <nn>/ of a sweep: each run's own log.jsonl, sae/ and train.json

    Behind a URL (`gs://bucket/run`) the paths below are those of a working copy on this machine (see `mirror.py`),
    except `checkpoints`, which are written and read where they lie.

    Args:
        path: the folder, or a URL; it is made by `open`.

    Attributes:
        place: where the run lies.
        path: where its files are read and written.
    """

    def __init__(self, path: str | os.PathLike):
        text = os.path.expanduser(os.fspath(path).removeprefix("file://"))
        self.place = Folder(text if "://" in text else os.path.abspath(text))
        self._mirror = Mirror(self.place) if self.place.remote else None
        self.path = self._mirror.path if self._mirror else pathlib.Path(self.place.path)

    def __fspath__(self) -> str:
        return str(self.place)

    def __str__(self) -> str:
        return str(self.place)

    def __repr__(self) -> str:
        return f"RunDir({str(self.place)!r})"

    @property
    def config(self) -> pathlib.Path:
        return self.path / "config.yaml"

    @property
    def readme(self) -> pathlib.Path:
        return self.path / "README.md"

    @property
    def profile(self) -> pathlib.Path:
        return self.path / "profile"

    @property
    def traced(self) -> pathlib.Path | None:
        """Where this process may leave a profiler trace: behind a URL only process 0's is uploaded."""
        return self.profile if self._mirror is None or parallel.first() else None

    @property
    def log(self) -> pathlib.Path:
        return self.path / "log.jsonl"

    @property
    def checkpoints(self) -> pathlib.Path | str:
        return f"{self.place}/checkpoints" if self._mirror else self.path / "checkpoints"

    @property
    def sae(self) -> pathlib.Path:
        return self.path / "sae"

    @property
    def summary(self) -> pathlib.Path:
        return self.path / "train.json"

    def member(self, index: int) -> "RunDir":
        """The folder of one run of a sweep; behind a URL, in the working copy."""
        return RunDir(self.path / self.member_name(index))

    def member_name(self, index: int) -> str:
        """Where that lies in this one."""
        return f"members/{index:02d}"

    def set_dictionary_aside(self) -> None:
        """Renames what an earlier end of the run exported to `sae.earlier`, so that nobody takes it for the newest.

        Objects behind a URL cannot be renamed and stay; `eval` and `report` go by the summary, which says so.
        """
        if self.sae.exists():
            aside = self.sae.with_name("sae.earlier")
            shutil.rmtree(aside, ignore_errors=True)
            self.sae.rename(aside)

    def holds(self, name: str) -> bool:
        """Whether a part, such as "sae" or "checkpoints", is there."""
        return bool(self.place.names(name)) if self._mirror else (self.path / name).exists()

    def push(self) -> Callable[[], None]:
        """Behind a URL: starts to upload what changed, and returns what waits for it; on a disk there is nothing to do.

        Raises:
            CheckpointError: it cannot be uploaded, or another process has begun to train into the same place.
        """
        return self._mirror.push() if self._mirror else lambda: None

    @contextlib.contextmanager
    def open(self) -> Iterator["RunDir"]:
        """Makes the folder and holds it: a second run that wants to train into it is refused.

        The lock belongs to the process, so a killed one leaves none behind.  Of the processes of one run, process 0
        holds it, and all make sure that they see the same folder.  Behind a URL there is no lock: the newest session
        owns the run, and an older one that still lives ends before its next upload.

        Raises:
            ConfigError: the folder cannot be made, or is not the same one for all processes of the run.
            CheckpointError: another run trains into it.
        """
        with contextlib.ExitStack() as stack:
            held = self._mirror.owned if self._mirror else self._held
            parallel.on_first("run directory", lambda: stack.enter_context(held()))
            self._require_shared()
            if self._mirror:
                self._mirror.fetch()
            yield self

    def _require_shared(self) -> None:
        """A word that process 0 writes must be read by the others."""
        if not parallel.several():
            return
        word = parallel.exchange("word", uuid.uuid4().hex)[0]
        parallel.on_first("shared", lambda: self.place.write(".shared", word.encode()))
        found, until = b"", time.monotonic() + 20  # a network file system may show a new file late
        while found != word.encode() and time.monotonic() < until:
            found = self.place.read(".shared") or b""
            time.sleep(0 if found == word.encode() else 0.5)
        problem = None if found == word.encode() else ConfigError("does not see it")
        if blind := parallel.agree_on("seen", problem):
            raise ConfigError(
                f"the run directory {str(self)!r} must be one folder for all processes, but one {blind}; put the "
                "output on a file system that all machines share, or behind a URL that all reach"
            )
        parallel.on_first("shared", lambda: self.place.delete(".shared"))

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as e:
            raise ConfigError(
                f"the run directory {str(self.path)!r} cannot be used: {e.strerror}; choose another output"
            ) from e
        try:
            _lock(handle, self.path)
            yield
        finally:
            os.close(handle)


def _lock(handle: int, folder: pathlib.Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: no such lock; two runs in one folder are then the user's to avoid
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise CheckpointError(
            f"another process is training into {str(folder)!r}; wait for it, or choose another output"
        ) from e
    except OSError:  # a file system without locks
        return


def make_folder_of(path: str | os.PathLike) -> None:
    """Makes the folder that a file is to lie in; behind a URL there are none to make.

    Raises:
        ConfigError: it cannot be made.
    """
    if "://" in os.fspath(path):
        return
    try:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"the folder of {str(path)!r} cannot be made: {e.strerror or e}; choose another") from e


def plain(data: Any) -> Any:
    """The same data with None for numbers that JSON has no word for, which other readers of the file would refuse.

    Example:
        >>> plain({"loss": (1.0, float("nan"))})
        {'loss': [1.0, None]}
    """
    if isinstance(data, Mapping):
        return {str(k): plain(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(v) for v in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Writes plain data as JSON, whole, into a folder that is made where it is missing.

    Raises:
        CheckpointError: it cannot be written.
        ConfigError: the folder cannot be made.
    """
    make_folder_of(path)
    write_atomic(path, json.dumps(plain(data), indent=1, allow_nan=False) + "\n")


def write_atomic(path: str | os.PathLike, text: str) -> None:
    """Replaces a file, on a disk or behind a URL, by one with this text, or leaves it as it was.

    Raises:
        CheckpointError: it cannot be written.
    """
    if "://" in os.fspath(path):
        folder, _, name = os.fspath(path).rpartition("/")
        try:
            return Folder(folder).write(name, text.encode())
        except DataError as e:
            raise CheckpointError(f"{e}; check the network and the permissions") from e
    path = pathlib.Path(path)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as e:
        raise CheckpointError(f"{str(path)!r} cannot be written: {e.strerror or e}; check space and permissions") from e
