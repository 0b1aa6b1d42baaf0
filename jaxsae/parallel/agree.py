"""What all processes of a run have to agree on: what they run, and when they stop."""

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.errors import ConfigError
from jaxsae.parallel import processes

#: Steps between a wish to stop and the look at what all wish: by then the device has the answer, so nobody waits.
LAG = 4


def require_the_same(facts: Mapping[str, Any], index: int, count: int) -> None:
    """Compares plain data between processes, before any device is touched.

    Args:
        facts: what has to be equal everywhere.
        index: this process.
        count: how many there are.

    Raises:
        ConfigError: on all processes, naming what differs where.
    """
    client = processes.client()
    client.key_value_set(f"jaxsae/start/{index}", json.dumps(flat(facts)))
    if index == 0:
        every = [json.loads(client.blocking_key_value_get(f"jaxsae/start/{i}", 120_000)) for i in range(count)]
        client.key_value_set("jaxsae/start/verdict", verdict(every))
    said = client.blocking_key_value_get("jaxsae/start/verdict", 120_000)
    if said != "same":
        raise ConfigError(said)


def verdict(every: list[dict[str, Any]]) -> str:
    """ "same", or one sentence about the first differences from process 0.

    Example:
        >>> verdict([{"config.lr": 1}, {"config.lr": 1}, {"config.lr": 2}]).split("; ")[0]
        'the processes were not started alike: config.lr is 1 on process 0 and 2 on process 2'
    """
    found = [
        f"{key} is {every[0].get(key)!r} on process 0 and {other.get(key)!r} on process {i}"
        for i, other in enumerate(every)
        for key in [*every[0], *(k for k in other if k not in every[0])]
        if other.get(key) != every[0].get(key)
    ]
    if not found:
        return "same"
    more = f"; and {len(found) - 3} more differences" if len(found) > 3 else ""
    return (
        f"the processes were not started alike: {'; '.join(found[:3])}{more}; start the same command with the same "
        "packages everywhere"
    )


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested plain data as one level of dotted names.

    Example:
        >>> flat({"a": {"b": [1, {"c": 2}]}})
        {'a.b[0]': 1, 'a.b[1].c': 2}
    """
    if isinstance(data, Mapping):
        parts = [(f"{prefix}.{k}" if prefix else str(k), v) for k, v in data.items()]
    elif isinstance(data, (list, tuple)):
        parts = [(f"{prefix}[{i}]", v) for i, v in enumerate(data)]
    else:
        return {prefix: data}
    return {name: value for key, v in parts for name, value in flat(v, key).items()}


class StopVote:
    """Lets all processes stop after the same step, whichever of them was asked to.

    Each step adds one number per process to a maximum over all; its value is read `LAG` steps later, when it has long
    been there.  So every process sees the same wish at the same step, and none waits for it.  With one process the wish
    counts at once.

    Args:
        mesh: of the run.

    Example:
        >>> vote = StopVote(None)
        >>> vote(None), vote(15)
        (None, 15)
    """

    def __init__(self, mesh: Mesh | None):
        self._mesh = mesh if processes.several() else None
        self._waiting: deque[jax.Array] = deque()
        if self._mesh is not None:
            self._split = NamedSharding(self._mesh, P(self._mesh.axis_names))
            self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(self._mesh, P()))

    def __call__(self, wish: int | None) -> int | None:
        """The signal that all processes stop for after this step, or None.

        Args:
            wish: the signal that asks this process to stop, if one does.
        """
        if self._mesh is None:
            return wish
        own = np.full(1, wish or 0, np.int32)
        votes = jax.make_array_from_callback((self._mesh.size,), self._split, lambda _: own)
        self._waiting.append(self._largest(votes))
        if len(self._waiting) <= LAG:
            return None
        return int(self._waiting.popleft()) or None


def total(number: int) -> int:
    """The sum of a number over all processes."""
    return sum(int(n) for n in processes.exchange("total", str(number)))
