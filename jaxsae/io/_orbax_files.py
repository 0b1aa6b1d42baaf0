"""Checkpoints in a local folder, by Orbax: one folder `<step>/` each, which appears by a rename when it is complete."""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxsae import parallel
from jaxsae.errors import CheckpointError
from jaxsae.io._quiet import quiet_orbax

#: What is read alone, and the rest.
ITEMS = ("params", "average", "rest")


def item_of(path: str) -> str:
    """The item that holds a leaf.

    Example:
        >>> item_of("params.W_enc"), item_of("opt.0.mu.W_enc")
        ('params', 'rest')
    """
    top = path.partition(".")[0]
    return top if top in ITEMS else "rest"


def _not_told_already(record: logging.LogRecord) -> bool:
    """Orbax reads in many tasks and raises what the first of them met; asyncio logs the others' with a stack trace."""
    message = record.getMessage()
    return not ("never retrieved" in message and "orbax" in message)


logging.getLogger("asyncio").addFilter(_not_told_already)


class OrbaxFiles:
    """Where and how `Checkpoints` of a run on a disk are kept.

    Args:
        folder: an absolute path.
        latest: how many of the newest are kept.
        every_steps: multiples of it are kept too.
        create: make the folder if it is missing.
    """

    def __init__(self, folder: str, latest: int, every_steps: int | None, create: bool):
        self.folder = folder
        self._quiet = contextlib.ExitStack()
        if not create and not os.path.isdir(folder):
            raise CheckpointError(f"expected checkpoints in {folder!r}, found no such folder; check the path")
        self._quiet.enter_context(quiet_orbax())
        self._manager = self._open(latest, every_steps, create)

    def _open(self, latest: int, every_steps: int | None, create: bool) -> Any:
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        keep: list[Any] = [policies.LatestN(latest)]
        if every_steps:
            keep.append(policies.EveryNSteps(every_steps))
        options = ocp.CheckpointManagerOptions(
            create=create,
            cleanup_tmp_directories=create,  # leftovers of a killed save; a reader must not touch a writer's
            preservation_policy=policies.AnyPreservationPolicy(keep),
        )
        try:
            return ocp.CheckpointManager(self.folder, options=options)
        except OSError as e:
            raise CheckpointError(f"checkpoints cannot be kept in {self.folder!r}: {e.strerror or e}") from e

    def free_bytes(self) -> int | None:
        """Room for another one, if that is known."""
        return shutil.disk_usage(self.folder).free

    def steps(self) -> list[int]:
        """The finished ones, ascending."""
        return sorted(int(s) for s in self._manager.all_steps())

    def save(self, step: int, meta: Mapping[str, Any], leaves: Mapping[str, jax.Array], before: Callable) -> None:
        """Starts to write one; returns when the arrays have left the devices."""
        import orbax.checkpoint as ocp

        before()
        items = {name: ocp.args.StandardSave(part) for name, part in _split(leaves).items() if part}
        self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(dict(meta)), **items))

    def wait(self) -> None:
        """Returns when what was started is on disk, or raises what went wrong."""
        self._manager.wait_until_finished()

    def meta(self, step: int) -> Any:
        """What `save` was given as meta."""
        import orbax.checkpoint as ocp

        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def leaves(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Some of the arrays, each with the sharding wanted."""
        import orbax.checkpoint as ocp
        from etils import epath  # Orbax brings it along

        items = {name: ocp.args.StandardRestore(part) for name, part in _split(wanted).items() if part}
        if parallel.several():  # the manager waits for the others, and a damaged file may hit only one
            place = epath.Path(self.folder) / str(step)
            read: Any = {
                name: ocp.StandardCheckpointHandler().restore(place / name, args=items[name]) for name in items
            }
        else:
            read = self._manager.restore(step, args=ocp.args.Composite(**items))
        return {path: leaf for name in items for path, leaf in read[name].items()}

    def set_aside(self, step: int) -> None:
        """Renames one to `damaged-<step>`."""
        place = os.path.join(self.folder, f"damaged-{step}")

        def move() -> None:
            shutil.rmtree(place, ignore_errors=True)
            os.rename(os.path.join(self.folder, str(step)), place)

        parallel.on_first("set aside", move)
        self._manager.reload()

    def close(self) -> None:
        """Lets go of the folder."""
        with contextlib.suppress(Exception):  # an error of the last save, which wait() has already told
            self._manager.close()
        self._quiet.close()


def _split(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: {p: x for p, x in flat.items() if item_of(p) == name} for name in ITEMS}
