"""Which implementation of an op runs: the one asked for by name, or the first that suits the platform.

`None` picks by platform and may fall back with a logged reason; a named implementation never falls back.
"""

import functools
import logging
from collections.abc import Callable, Mapping

import jax

from jaxsae.errors import ConfigError, closest

log = logging.getLogger("jaxsae.kernels")


def choose(op: str, implementation: str | None, available: Mapping[str, Callable]) -> Callable:
    """The function that will compute `op`.

    Args:
        op: name of the op, for messages.
        implementation: a key of `available`, or None for the best on this platform.
        available: implementations of this op in order of preference.

    Raises:
        ConfigError: the named implementation does not exist for this op; the message lists those that do.
    """
    if implementation is None:
        name = next(iter(available))
        _log_once(op, name, jax.default_backend())
        return available[name]
    if implementation not in available:
        raise ConfigError(f"{op}: no implementation {implementation!r} here{closest(implementation, available)}")
    return available[implementation]


@functools.cache
def _log_once(op: str, name: str, platform: str) -> None:
    log.info("%s on %s: implementation %r", op, platform, name)


def check_k(op: str, k: int, size: int) -> None:
    """Refuses a k that the op cannot serve."""
    if not 0 < k <= size:
        raise ConfigError(f"{op}: k must lie between 1 and the {size} candidates, found {k}")
