"""A run directory behind a URL: a working copy on this machine, uploaded file by file.

Object stores cannot append, and a reader should never see half a file.  So everything but the checkpoints is written
into a temporary folder, as for a run on a disk, and each file that changed is uploaded whole: when the run begins, at
every checkpoint and at the end.

Nor can they lock, and a machine that was taken away could not let go of its lock.  So the newest session owns the run:
it leaves its name in the object `.session`, and an older one that still lives reads it and ends before its next upload.
"""

import contextlib
import hashlib
import logging
import pathlib
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterator

from jaxsae.data.store import Folder, explained
from jaxsae.errors import CheckpointError, ConfigError, DataError, JaxsaeError

SESSION = ".session"
_log = logging.getLogger(__name__)


class Mirror:
    """The working copy of a run behind a URL.

    Args:
        place: where the run lies.
    """

    def __init__(self, place: Folder):
        self.place = place
        with explained("no temporary folder can be made"):
            self.path = pathlib.Path(tempfile.mkdtemp(prefix="jaxsae-run-"))
        self._gone = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
        self._session = uuid.uuid4().hex
        self._sent: dict[str, tuple[tuple[int, int] | None, bytes]] = {}  # name -> (time and size, digest)
        self._arrived: Callable[[], None] = lambda: None

    def fetch(self) -> None:
        """Brings what a session that goes on reads: the logs, and the name of a Weights & Biases run.

        Raises:
            ConfigError: the URL cannot be read.
        """
        try:
            names = ["log.jsonl", "wandb_id", *(n for n in self.place.names("members") if n.endswith("/log.jsonl"))]
            for name in names:
                if (data := self.place.read(name)) is not None:
                    file = self.path / name
                    with explained(f"{str(file)!r} cannot be written"):
                        file.parent.mkdir(parents=True, exist_ok=True)
                        file.write_bytes(data)
                    self._sent[name] = (None, _digest(data))
        except DataError as e:
            raise self._unusable(e) from e

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Makes this session the one that writes, and uploads what is left at its end, also after an error."""
        try:
            self.place.write(SESSION, self._session.encode())
        except DataError as e:
            raise self._unusable(e) from e
        try:
            yield
        except BaseException:
            try:
                self.push()()
            except JaxsaeError as e:  # what ended the run matters more
                _log.warning("%s", e)
            raise
        self.push()()

    def push(self) -> Callable[[], None]:
        """Starts to upload what changed; what is returned waits for it, and makes sure that the run is still ours.

        Raises:
            CheckpointError: another process has begun to train into the same place, or it cannot be written.
        """
        self._arrived()  # an older upload of a file must not come after a newer one
        self._require_ours()
        waiting = []
        with self._told():
            for file in sorted(p for p in self.path.rglob("*") if p.is_file()):
                name, stat = file.relative_to(self.path).as_posix(), file.stat()
                if name.startswith("wandb/") or name.endswith(".part"):
                    continue
                stamp = (stat.st_mtime_ns, stat.st_size)
                old_stamp, old_digest = self._sent.get(name, (None, b""))
                if stamp == old_stamp:
                    continue
                data = file.read_bytes()
                if (digest := _digest(data)) != old_digest:
                    waiting.append((name, (stamp, digest), self.place.begin_write(name, data)))

        def arrived() -> None:
            with self._told():
                for name, state, done in waiting:
                    done()
                    self._sent[name] = state

        def wait() -> None:
            arrived()
            self._require_ours()

        self._arrived = arrived
        return wait

    def _require_ours(self) -> None:
        with self._told():
            found = self.place.read(SESSION)
        if found != self._session.encode():
            raise CheckpointError(
                f"another process has begun to train into {str(self.place)!r}, and the newest goes on; this one stops "
                "and overwrites nothing more"
            )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except DataError as e:
            self._gone.detach()
            raise CheckpointError(
                f"{e}; what was there is unchanged, and what is new lies in {str(self.path)!r}: check the network and "
                "the permissions, and run the same command again"
            ) from e

    def _unusable(self, error: DataError) -> ConfigError:
        return ConfigError(f"the run directory {str(self.place)!r} cannot be used ({error}); choose another output")


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
