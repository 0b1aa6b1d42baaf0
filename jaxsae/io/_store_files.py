"""Checkpoints behind a URL, by TensorStore alone: an object store has no rename, so an object says what counts.

    <step>/<leaf>/       one zarr array per leaf, in pieces that lie within one device's part
    done/<step>.json     the metadata, written when all pieces are there: without it there is no such checkpoint
    damaged/<step>.json  the same of one that was set aside

Orbax would reach a bucket only through packages of each vendor (gcsfs, s3fs); TensorStore reaches all of them as it is.
"""

import functools
import itertools
import json
import math
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxsae import parallel
from jaxsae.data.store import Folder, explained
from jaxsae.errors import CheckpointError, DataError
from jaxsae.io.checkpoint_meta import Damaged

#: Bytes of one object, at most, where the shape allows.
PIECE_BYTES = 64 * 2**20
#: How TensorStore's errors begin when the content is at fault, and not the way to it.
_AT_FAULT = ("NOT_FOUND", "DATA_LOSS", "FAILED_PRECONDITION")


class StoreFiles:
    """Where and how `Checkpoints` of a run behind a URL are kept.

    Args:
        folder: the URL, or a local copy of such a folder.
        latest: how many of the newest are kept.
        every_steps: multiples of it are kept too.
    """

    def __init__(self, folder: str, latest: int, every_steps: int | None):
        self.folder, self._latest, self._every = Folder(folder), latest, every_steps
        self._thread: threading.Thread | None = None
        self._problem: Exception | None = None
        self._session = parallel.exchange("checkpoints", uuid.uuid4().hex)[0]
        if not self.steps() and any(n.endswith("_CHECKPOINT_METADATA") for n in self.folder.names()):
            raise CheckpointError(
                f"{folder!r} holds checkpoints that were made in a local folder; copy the run back to a disk to "
                "continue it, or choose another output"
            )

    def free_bytes(self) -> int | None:
        """Room for another one: not known."""
        return None

    def steps(self) -> list[int]:
        """The finished ones, ascending."""
        names = [n.removeprefix("done/").removesuffix(".json") for n in self.folder.names("done")]
        return sorted(int(n) for n in names if n.isdigit())

    # -------------------------------------------------------------------------------------------------------- writing
    def save(self, step: int, meta: Mapping[str, Any], leaves: Mapping[str, jax.Array], before: Callable) -> None:
        """Starts to write one; returns when the arrays have left the devices.

        Args:
            step: which.
            meta: plain data.
            leaves: arrays by path.
            before: called, by process 0, when the arrays are written and before the checkpoint counts.
        """
        own = {path: _own_parts(x) for path, x in leaves.items()}
        shapes = {path: (x.shape, str(x.dtype), _piece(x)) for path, x in leaves.items()}

        def write() -> None:
            try:
                self._in_step(step, "made", lambda: self._make(step, shapes), only_first=True)
                self._in_step(step, "written", lambda: self._write(step, own))
                self._in_step(step, "done", lambda: self._finish(step, meta, before), only_first=True)
            except Exception as e:
                self._problem = e

        self._thread = threading.Thread(target=write, name="jaxsae-checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when what was started is in the store, or raises what went wrong."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def _in_step(self, step: int, what: str, action: Callable[[], None], only_first: bool = False) -> None:
        """Does a part of a save; all processes of a run go on to the next part, or all fail.

        It runs beside the main thread, so its words have names of their own and no turn.
        """
        problem: Exception | None = None
        try:
            if parallel.first() or not only_first:
                action()
        except Exception as e:
            problem = e
        said = parallel.exchange(what, str(problem or ""), place=f"checkpoint/{self._session}/{step}/{what}")
        if problem is not None:
            raise problem
        if text := next(filter(None, said), ""):
            raise CheckpointError(text)

    def _make(self, step: int, shapes: Mapping[str, tuple]) -> None:
        """Empty arrays in place of what a killed save may have left."""
        self.folder.delete(f"{step}/")
        for made in [(self.folder / str(step)).begin_plain(path, *shape) for path, shape in shapes.items()]:
            made()

    def _write(self, step: int, own: Mapping[str, list]) -> None:
        opened = {path: (self.folder / str(step)).open_array(path, write=True) for path in own}
        with explained(f"{self.folder}/{step} cannot be written"):
            for future in [opened[path][where].write(part) for path in own for where, part in own[path]]:
                future.result()

    def _finish(self, step: int, meta: Mapping[str, Any], before: Callable) -> None:
        before()
        self.folder.write(f"done/{step}.json", json.dumps(meta).encode())
        steps = self.steps()
        for old in steps[: -self._latest]:
            if not self._every or old % self._every:
                self.folder.delete(f"done/{old}.json")
                self.folder.delete(f"{old}/")

    # -------------------------------------------------------------------------------------------------------- reading
    def meta(self, step: int) -> Any:
        """What `save` was given as meta."""
        found = self._reachable(lambda: self.folder.read(f"done/{step}.json"))
        return json.loads(found or b"")

    def leaves(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Some of the arrays, each with the sharding wanted; a process reads what its devices hold."""
        return {path: self._reachable(functools.partial(self._leaf, step, path, x)) for path, x in wanted.items()}

    def _leaf(self, step: int, path: str, wanted: jax.ShapeDtypeStruct) -> jax.Array:
        array = (self.folder / str(step)).open_array(path)
        parts: dict[str, np.ndarray] = {}

        def part(where: Any) -> np.ndarray:
            if str(where) not in parts:  # devices that hold the same are served by one read
                parts[str(where)] = np.asarray(array[where].read().result())
            return parts[str(where)]

        with explained(f"{self.folder}/{step}/{path} cannot be read"):
            return jax.make_array_from_callback(wanted.shape, wanted.sharding, part)

    def _reachable(self, read: Callable[[], Any]) -> Any:
        """Only what is there and wrong is damaged; where the store cannot be reached, nothing is to be given up."""
        try:
            return read()
        except DataError as e:
            if str(e.__cause__).startswith(_AT_FAULT):
                raise Damaged(str(e)) from e
            raise CheckpointError(f"{e}; run again when it can be reached") from e

    def set_aside(self, step: int) -> None:
        """Lets one no longer count; its arrays stay until the same step is saved anew."""

        def move() -> None:
            self.folder.write(f"damaged/{step}.json", self.folder.read(f"done/{step}.json") or b"")
            self.folder.delete(f"done/{step}.json")

        parallel.on_first("set aside", move)

    def close(self) -> None:
        """Nothing is held."""


def _own_parts(x: Any) -> list[tuple[Any, np.ndarray]]:
    """(place, content) of what this process has to write of an array: copies, since the state is donated next."""
    if not isinstance(x, jax.Array):
        return [((), np.array(x))] if parallel.first() else []
    return [(s.index, np.array(s.data)) for s in x.addressable_shards if s.replica_id == 0]


def _piece(x: Any) -> tuple[int, ...]:
    """The shape of one object: a device's part, cut along its first axis into equal pieces of at most PIECE_BYTES."""
    shape = x.sharding.shard_shape(x.shape) if isinstance(x, jax.Array) else x.shape
    if not shape or not math.prod(shape):
        return tuple(max(1, n) for n in shape)
    least = -(-math.prod(shape) * x.dtype.itemsize // PIECE_BYTES)
    pieces = next(n for n in itertools.count(max(1, least)) if shape[0] % n == 0 or n >= shape[0])
    return (max(1, shape[0] // pieces), *shape[1:])
