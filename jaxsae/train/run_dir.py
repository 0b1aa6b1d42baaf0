"""The folder of one run: where its parts lie, and that only one process writes into it."""

import contextlib
import os
import pathlib
import time
import uuid
from collections.abc import Iterator

from jaxsae import parallel
from jaxsae.errors import CheckpointError, ConfigError


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

    Args:
        path: the folder; it is made by `open`.
    """

    def __init__(self, path: str | os.PathLike):
        if "://" in os.fspath(path):
            raise ConfigError(
                f"a run directory has to be a local folder (a mounted bucket will do), found {os.fspath(path)!r}; "
                "only caches and dictionaries may lie behind a URL"
            )
        self.path = pathlib.Path(os.path.abspath(os.path.expanduser(os.fspath(path))))

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

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
    def log(self) -> pathlib.Path:
        return self.path / "log.jsonl"

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    @property
    def sae(self) -> pathlib.Path:
        return self.path / "sae"

    @property
    def summary(self) -> pathlib.Path:
        return self.path / "train.json"

    def member(self, index: int) -> "RunDir":
        """The folder of one run of a sweep."""
        return RunDir(self.path / "members" / f"{index:02d}")

    @contextlib.contextmanager
    def open(self) -> Iterator["RunDir"]:
        """Makes the folder and holds it: a second run that wants to train into it is refused.

        The lock belongs to the process, so a killed one leaves none behind.  Of the processes of one run, process 0
        holds it, and all make sure that they see the same folder.

        Raises:
            ConfigError: the folder cannot be made, or is not the same one for all processes of the run.
            CheckpointError: another run trains into it.
        """
        with contextlib.ExitStack() as stack:
            parallel.on_first("run directory", lambda: stack.enter_context(self._held()))
            self._require_shared()
            yield self

    def _require_shared(self) -> None:
        """A word that process 0 writes must be read by the others."""
        if not parallel.several():
            return
        note, word = self.path / ".shared", uuid.uuid4().hex
        word = parallel.exchange("word", word)[0]
        parallel.on_first("shared", lambda: write_atomic(note, word))
        found, until = "", time.monotonic() + 20  # a network file system may show a new file late
        while found != word and time.monotonic() < until:
            found = note.read_text(encoding="utf-8") if note.exists() else ""
            time.sleep(0 if found == word else 0.5)
        problem = None if found == word else ConfigError("does not see it")
        if blind := parallel.agree_on("seen", problem):
            raise ConfigError(
                f"the run directory {str(self.path)!r} must be one folder for all processes, but one {blind}; put the "
                "output on a file system that all machines share"
            )
        parallel.on_first("shared", lambda: note.unlink(missing_ok=True))

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


def write_atomic(path: pathlib.Path, text: str) -> None:
    """Replaces a file by one with this text, or leaves it as it was.

    Raises:
        CheckpointError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as e:
        raise CheckpointError(f"{str(path)!r} cannot be written: {e.strerror or e}; check space and permissions") from e
