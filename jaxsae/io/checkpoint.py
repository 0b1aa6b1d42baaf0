"""Checkpoints of any state: written by Orbax on a disk and by TensorStore behind a URL, judged by us.

A checkpoint counts when everything in it is written, so a process killed in between leaves only leftovers that nobody
reads (`_orbax_files.py` and `_store_files.py` say how).  It holds the arrays, such that an evaluator reads parameters
without the optimiser's moments, and `meta`: format version, configuration, progress, and shape, dtype and digest of
every leaf.  A restore first checks `meta` against what is wanted, then reads, then compares digests; a checkpoint that
fails is named and the one before it is used.  Nothing in these files is executed.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxsae import parallel
from jaxsae.errors import CheckpointError, JaxsaeError
from jaxsae.io import digest
from jaxsae.io._orbax_files import OrbaxFiles, item_of
from jaxsae.io._store_files import StoreFiles
from jaxsae.io.checkpoint_meta import Damaged, Meta, check_leaves, describe, seal, unseal
from jaxsae.typing import PyTree

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which checkpoints stay on disk: the newest few, and landmarks for good.

    Attributes:
        latest: how many of the newest to keep; two or more, or a damaged one has nothing behind it.
        every_steps: keep also each checkpoint whose step is a multiple of this; None keeps no landmarks.
    """

    latest: int = 2
    every_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class Restored:
    """A state read back, its `Meta`, and the newer checkpoints that were damaged: (step, what is wrong)."""

    state: PyTree
    meta: Meta
    skipped: tuple[tuple[int, str], ...] = ()


class Checkpoints:
    """The checkpoints of one run.

    Saving is asynchronous: `save` returns when the arrays have left the device (so the state may be donated to the
    next step), and the files appear later; `wait` and `close` raise what went wrong meanwhile.

    Args:
        folder: where they lie, relative or absolute, or a URL such as `gs://bucket/run/checkpoints`.
        retention: which of them stay; the choice is applied when one is added.
        create: make the folder if it is missing.

    Raises:
        CheckpointError: the folder is missing (with `create=False`) or cannot be made.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
        ...     checkpoints.save(3, {"params": {"w": jnp.ones(2)}}, progress={"tokens": 96})
        ...     checkpoints.wait()
        ...     found = checkpoints.restore({"params": {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}})
        >>> found.meta.step, found.meta.progress["tokens"], float(found.state["params"]["w"].sum())
        (3, 96, 2.0)
    """

    def __init__(self, folder: str | os.PathLike, retention: Retention = Retention(), *, create: bool = True):
        self.folder = _absolute(folder)
        self._in_flight: int | None = None
        self._files: OrbaxFiles | StoreFiles
        keep = (max(1, retention.latest), retention.every_steps)
        if "://" in self.folder or os.path.isdir(os.path.join(self.folder, "done")):  # behind a URL, or copied from it
            self._files = StoreFiles(self.folder, *keep)
        else:
            self._files = OrbaxFiles(self.folder, *keep, create)

    # -------------------------------------------------------------------------------------------------------- writing
    def save(
        self,
        step: int,
        state: PyTree,
        *,
        config: Mapping | None = None,
        progress: Mapping | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts to write the checkpoint of `step`; a step that is already there is left alone.

        Args:
            step: updates done so far.
            state: any tree of arrays; what lies under `params` and `average` at its top is readable alone.
            config: plain data, stored and returned as it is.
            progress: plain data, stored and returned as it is.
            before: called by process 0 before the checkpoint counts, perhaps in a thread; if it raises, the save fails.

        Raises:
            CheckpointError: the disk is full, or the save before this one failed.  Older checkpoints stay.
        """
        self.wait()
        if step in self.steps():
            return
        flat = digest.flatten(state)
        meta = seal(step, config or {}, progress or {}, describe(flat, digest.digests(state)))
        raw = {path: jax.random.key_data(x) if digest.is_key(x) else x for path, x in flat.items()}
        self._need_space(step, sum(x.nbytes for x in raw.values()))
        try:
            self._files.save(step, meta, raw, before)
        except Exception as e:
            raise self._failed(step, e) from e
        self._in_flight = step

    def wait(self) -> None:
        """Returns when the save under way is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        step, self._in_flight = self._in_flight, None
        if step is None:
            return
        try:
            self._files.wait()
        except Exception as e:
            raise self._failed(step, e) from e

    def _need_space(self, step: int, size: int) -> None:
        free = self._files.free_bytes()
        if free is not None and free < 1.05 * size:
            raise CheckpointError(
                f"the disk of {self.folder!r} is full: the checkpoint of step {step} needs {_mib(size)}, "
                f"{_mib(free)} are free; make room and run again, earlier checkpoints are intact"
            )

    def _failed(self, step: int, error: Exception) -> JaxsaeError:
        if parallel.lost(error):
            return parallel.peer_lost(error)
        return CheckpointError(
            f"the checkpoint of step {step} could not be written to {self.folder!r} ({_short(error)}); check the free "
            f"space and the permissions and run again, earlier checkpoints are intact"
        )

    # -------------------------------------------------------------------------------------------------------- reading
    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending, whether or not they are sound."""
        return self._files.steps()

    def meta(self, step: int) -> Meta:
        """What the checkpoint of `step` says about itself.

        Raises:
            CheckpointError: it is missing, damaged, or of a format version this program does not know.
        """
        try:
            return self._meta(*self._candidates(step))
        except Damaged as e:
            raise CheckpointError(f"checkpoint {step} in {self.folder!r} is damaged: {e}") from e

    def newest_meta(self) -> Meta | None:
        """What the newest checkpoint that can tell says about itself, or None; `restore` names those that cannot."""
        for step in reversed(self.steps()):
            with contextlib.suppress(CheckpointError):
                return self.meta(step)
        return None

    def restore(self, target: PyTree, step: int | None = None) -> Restored | None:
        """Reads the newest sound checkpoint, or the one of `step`.

        Args:
            target: the tree wanted, of arrays or `jax.ShapeDtypeStruct`; each leaf arrives with the target leaf's
                sharding (which may differ from the one it was saved with), or on the first device if it has none.
            step: exactly this checkpoint; nothing else is tried.

        Returns:
            the state and what was stored with it, or None if the folder holds no checkpoint at all.

        Raises:
            CheckpointError: all checkpoints are damaged, a leaf's shape or dtype is not the target's, or the format
                version is unknown.
        """
        skipped: list[tuple[int, str]] = []
        for candidate in self._candidates(step):
            try:
                meta = _together("meta", functools.partial(self._meta, candidate))
                check_leaves(meta, target, self.folder)
                return Restored(self._read(meta, target), meta, tuple(skipped))
            except Damaged as e:
                skipped.append((candidate, str(e)))
                _log.warning("checkpoint %d in %s is damaged and not used: %s", candidate, self.folder, e)
        if not skipped:
            return None
        raise CheckpointError(
            f"no sound checkpoint in {self.folder!r}: "
            + "; ".join(f"{s} is damaged ({why})" for s, why in skipped)
            + "; start again in another folder, or bring a copy back"
        )

    def params(self, step: int | None = None, item: str = "params") -> tuple[dict[str, jax.Array], Meta]:
        """One item of the newest sound checkpoint (or the one of `step`), by path below the item, and its `Meta`.

        Raises:
            CheckpointError: as `restore`; also if there is no checkpoint, or none holds the item.
        """
        problems = []
        for candidate in self._candidates(step):
            try:
                meta = self._meta(candidate)
                wanted = {path: _abstract(leaf) for path, leaf in meta.leaves.items() if item_of(path) == item}
                if not wanted:
                    raise Damaged(f"it has no {item!r}")
                return {p.partition(".")[2]: x for p, x in self._leaves(meta, wanted).items()}, meta
            except Damaged as e:
                problems.append(f"{candidate} ({e})")
                _log.warning("checkpoint %d in %s is not used: %s", candidate, self.folder, e)
        found = "found none" if not problems else "cannot use " + ", ".join(problems)
        raise CheckpointError(f"expected a checkpoint with {item!r} in {self.folder!r}, {found}; check the path")

    def set_aside(self, step: int) -> None:
        """Keeps the checkpoint of `step` from counting, so that a run that went back can save it anew."""
        self._files.set_aside(step)

    def _candidates(self, step: int | None) -> list[int]:
        steps = self.steps()
        if step is not None and step not in steps:
            found = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(f"expected a checkpoint of step {step} in {self.folder!r}, found {found}")
        return steps[::-1] if step is None else [step]

    def _meta(self, step: int) -> Meta:
        with _reading("meta"):
            return unseal(self._files.meta(step), step, self.folder)

    def _read(self, meta: Meta, target: PyTree) -> PyTree:
        leaves = self._leaves(meta, digest.flatten(target))
        return jax.tree.unflatten(jax.tree.structure(target), list(leaves.values()))

    def _leaves(self, meta: Meta, target: dict[str, Any]) -> dict[str, jax.Array]:
        wanted = {path: _raw_abstract(leaf) for path, leaf in target.items()}

        def arrays() -> Any:
            with _reading("arrays"):
                return self._files.leaves(meta.step, wanted)

        flat = _together("arrays", arrays)
        found = {path: _wrap(flat[path], leaf) for path, leaf in target.items()}
        for path, value in digest.digests(found).items():
            if value != meta.leaves[path]["digest"]:
                raise Damaged(f"the content of {path!r} does not match its digest")
        return found

    # -------------------------------------------------------------------------------------------------------- closing
    def close(self) -> None:
        """Waits for the save under way and lets go of the folder.

        Raises:
            CheckpointError: that save failed.
        """
        try:
            self.wait()
        finally:
            self._files.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not parallel.lost(error):  # the save under way waits for all processes, and one is gone
            self.close()


# --------------------------------------------------------------------------------------------------------------- leaves
def _abstract(leaf: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(leaf["shape"]), np.dtype(leaf["dtype"]))


def _raw_abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if digest.is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _wrap(x: jax.Array, leaf: Any) -> jax.Array:
    """Typed random keys again, where the target asks for them."""
    if not digest.is_key(leaf):
        return x
    impl: list[Any] = []
    jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), leaf)  # an abstract key tells only a trace
    return jax.random.wrap_key_data(x, impl=impl[0])


# ---------------------------------------------------------------------------------------------------------------- small
@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Whatever goes wrong inside means a damaged checkpoint, except what is no fault of the file's."""
    try:
        yield
    except (Damaged, CheckpointError, MemoryError):
        raise
    except Exception as e:
        if "RESOURCE_EXHAUSTED" in str(e) or parallel.lost(e):
            raise
        time.sleep(0.1)  # lets the parallel reads of the same call end while their complaints are still caught
        raise Damaged(f"its {what} cannot be read: {_short(e)}") from e


def _together(what: str, read: Callable[[], Any]) -> Any:
    """What `read` returns; if it is damaged for one process of a run it is for all, so that they stay together."""
    result, problem = None, None
    try:
        result = read()
    except Damaged as e:
        problem = e
    if said := parallel.agree_on(what, problem):
        raise Damaged(said) from problem
    return result


def _absolute(folder: str | os.PathLike) -> str:
    text = os.fspath(folder)
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
