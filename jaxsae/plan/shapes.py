"""The shapes that slices of a TPU come in.

Checked before libtpu is asked, which ends the process at some shapes that do not exist (a side of 0, more chips than a
pod has) and opens others as if they did.
"""

import itertools
import math
from collections.abc import Iterator
from functools import cache

from jaxsae.errors import ConfigError

#: Cloud TPU's slices of v5e and v6e.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
#: Those of v5p below one cube of 4x4x4 chips; above they are made of whole cubes.
_BELOW_A_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
#: Longest side, and most chips, of a slice of whole cubes: 16x16x24 is the largest.
_LONGEST, _MOST = 24, 16 * 16 * 24
#: Names of the numbers of sides, for messages.
_SIDES = {2: "two", 3: "three"}


@cache
def shapes(kind: str) -> tuple[str, ...]:
    """All shapes of a chip's slices, by number of chips.

    Args:
        kind: v5e, v5p or v6e.

    Example:
        >>> shapes("v5e")[:3], shapes("v5p")[-1]
        (('1x1', '2x2', '2x4'), '16x16x24')
    """
    if kind != "v5p":
        return _FLAT
    sides = itertools.combinations_with_replacement(range(4, _LONGEST + 1, 4), 3)
    cubes = ["x".join(map(str, s)) for s in sides if math.prod(s) <= _MOST]
    return (*_BELOW_A_CUBE, *sorted(cubes, key=_by_size))


def check_shape(kind: str, shape: str) -> None:
    """Refuses a shape that no slice has.

    Raises:
        ConfigError: no such shape; the nearest are named.
    """
    found = shapes(kind)
    if shape in found:
        return
    far = lambda s: abs(math.log(max(1, chips(shape))) - math.log(chips(s)))  # noqa: E731
    near = [s for s in found if chips(s) == chips(shape)] or sorted(sorted(found, key=far)[:2], key=_by_size)
    names = " or ".join(f"{kind}:{s}" for s in near)
    sides = _SIDES[found[0].count("x") + 1]
    raise ConfigError(
        f"no topology '{kind}:{shape}'; expected a shape that {kind} slices come in ({sides} sides, from {found[0]} to "
        f"{found[-1]}), the nearest: {names}"
    )


def larger(kind: str, shape: str, chips_needed: float = 0.0) -> Iterator[str]:
    """Shapes of twice the chips, twice as many again and so on; of several, the one nearest to a cube.

    Args:
        kind: of chip.
        shape: to start from.
        chips_needed: with fewer there is no use in trying.

    Example:
        >>> list(larger("v5e", "4x4")), next(larger("v5p", "4x4x8", chips_needed=500))
        (['4x8', '8x8', '8x16', '16x16'], '8x8x8')
    """
    while bigger := [s for s in shapes(kind) if chips(s) >= max(2 * chips(shape), chips_needed)]:
        shape = min(bigger, key=_by_size)
        yield shape


def chips(shape: str) -> int:
    """How many a shape has."""
    return math.prod(map(int, shape.split("x")))


def _by_size(shape: str) -> tuple[int, int]:
    return chips(shape), max(map(int, shape.split("x")))
