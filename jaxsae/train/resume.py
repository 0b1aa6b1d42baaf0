"""Where a session of a run starts: from nothing, or from the newest sound checkpoint of the same run."""

from dataclasses import dataclass
from typing import Any

import jax

from jaxsae.config import from_dict
from jaxsae.data.sources import Source
from jaxsae.errors import ConfigError
from jaxsae.io.checkpoint import Checkpoints, Restored
from jaxsae.recipes import Programs, Recipe, State
from jaxsae.train.fleet import Fleet
from jaxsae.train.same import HARMLESS, differences, same_so_far


@dataclass(frozen=True)
class Begin:
    """Where a session starts: nothing done, or what a checkpoint holds."""

    state: State | None = None
    step: int = 0
    seconds: float = 0.0
    skipped: tuple[tuple[int, str], ...] = ()


def continue_from(
    checkpoints: Checkpoints,
    programs: Programs,
    about: dict[str, Any],
    steps: int,
) -> Begin:
    """Rules 3, 4 and 6 of `jaxsae.train.loop`.

    Raises:
        ConfigError: the checkpoints are of another run; the key is named.
        CheckpointError: none of them is sound, or they are of an unknown format version.
    """
    if not checkpoints.steps():
        return Begin()
    _refuse_other_run(checkpoints, about, programs.recipe, steps)
    found: Restored | None = checkpoints.restore(programs.abstract)
    assert found is not None
    for damaged, _ in found.skipped:
        checkpoints.set_aside(damaged)
    return Begin(found.state, found.meta.step, found.meta.progress["seconds"], found.skipped)


def _refuse_other_run(checkpoints: Checkpoints, about: dict[str, Any], recipe: Recipe | Fleet, steps: int) -> None:
    """Compares with the newest checkpoint whose account of itself can be read."""
    meta = checkpoints.newest_meta()
    if meta is None:
        return
    step = meta.step
    where = f"the run in {checkpoints.folder.removesuffix('/checkpoints')!r}"
    advice = "go on with the old value or choose another output"
    for name in ("run", "source"):
        for path, old, new in differences(meta.config[name], about[name], HARMLESS):
            raise ConfigError(f"{where} was begun with {path} = {old!r}, found {new!r}; {advice}")
    if steps < step:
        raise ConfigError(f"{where} has already done {step} steps, found a length of {steps}; {advice}")
    try:
        begun = from_dict(meta.config["recipe"], Recipe | Fleet)
    except ConfigError as e:
        raise ConfigError(f"{where} was begun by another version of jaxsae ({e}); go on with that version") from e
    if not same_so_far(begun, recipe, step):
        path, old, new = next(differences(meta.config["recipe"], about["recipe"]))
        raise ConfigError(
            f"{where} was begun with a recipe whose {path} is {old!r}, found {new!r}, which would have changed the "
            f"{step} steps already done; {advice}"
        )


def identity_of(source: Source, key: jax.Array) -> dict[str, Any]:
    """What decides the numbers of a run besides its recipe."""
    return {"key": jax.random.key_data(key).tolist(), "batch_size": source.batch_size, "d_in": source.d_in}
