"""Whether a run may go on under another configuration."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.config import members
from jaxsae.recipes import Recipe
from jaxsae.train.fleet import Fleet

#: Fields of `TrainConfig` that may change from one session of a run to the next.  They decide where things lie, how
#: long the run is and what is told about it, never a number of the steps already done.  (The data behind `cache` is
#: compared by its identity, not by its path.)
HARMLESS = ("output", "cache", "training_tokens", "checkpoint", "log", "evaluate", "mesh", "watch", "compilation_cache")


def differences(old: Any, new: Any, skip: tuple[str, ...] = (), where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, old value, new value) of every difference between two plain-data configurations.

    Example:
        >>> list(differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}))
        [('b.c', 2, 3)]
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            path = f"{where}.{key}" if where else key
            if path not in skip:
                yield from differences(old.get(key), new.get(key), skip, path)
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, skip, f"{where}[{i}]")
    elif old != new:
        yield where, old, new


def same_so_far(old: Recipe | Fleet, new: Recipe | Fleet, done: int) -> bool:
    """Whether the first `done` steps of two recipes are the same.

    They may differ in schedules, if those have the same values on these steps: a longer run whose learning rate has
    not begun to decay is the same so far.
    """
    kinds = tuple(members("schedule").values())
    return all(
        isinstance(a, kinds) and isinstance(b, kinds) and _equal_until(a, b, done) for a, b in _unequal(old, new, kinds)
    )


def _unequal(old: Any, new: Any, kinds: tuple[type, ...]) -> Iterator[tuple[Any, Any]]:
    """The smallest unequal parts of two objects; a schedule is not taken apart."""
    if old == new:
        return
    if type(old) is type(new) and dataclasses.is_dataclass(old) and not isinstance(old, kinds):
        for f in dataclasses.fields(old):
            yield from _unequal(getattr(old, f.name), getattr(new, f.name), kinds)
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        for a, b in zip(old, new, strict=True):
            yield from _unequal(a, b, kinds)
    else:
        yield old, new


def _equal_until(a: Any, b: Any, done: int) -> bool:
    steps = jnp.arange(done)
    return bool(np.array_equal(jax.vmap(a)(steps), jax.vmap(b)(steps)))
