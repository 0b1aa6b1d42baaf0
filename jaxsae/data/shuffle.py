"""Random orders that never change: not with the numpy version, the machine, or the number of processes.

numpy promises the raw output of its bit generators, not what `Generator.permutation` makes of it; so an order here is
the sort order of raw Philox numbers (Salmon et al. 2011), and its key is (seed, purpose, index).
"""

import numpy as np

#: What a random order is for; part of its key, so that two uses of one seed are unrelated.
PURPOSES = ("documents", "heldout", "rows", "chunks", "array", "block")


def raw(count: int, seed: int, purpose: str, *index: int) -> np.ndarray:
    """`count` random 64-bit numbers, a pure function of the key; a longer draw begins like a shorter one."""
    return bits(seed, purpose, *index).random_raw(count)


def bits(seed: int, purpose: str, *index: int) -> np.random.Philox:
    """The bit generator of a key."""
    # The length is part of the key: a seed sequence takes trailing zeros for nothing.
    key = np.random.SeedSequence([seed, PURPOSES.index(purpose), len(index), *index])
    return np.random.Philox(key)


def permutation(count: int, seed: int, purpose: str, *index: int) -> np.ndarray:
    """A random order of `range(count)`, [count] int64.

    Example:
        >>> sorted(permutation(5, 0, "rows").tolist())
        [0, 1, 2, 3, 4]
    """
    return np.argsort(raw(count, seed, purpose, *index), kind="stable")


def heldout(count: int, fraction: float, seed: int) -> np.ndarray:
    """Which of `count` documents are held out: the `fraction` of them with the smallest random number, [count] bool.

    At least one is where `fraction` is above 0 and there are two documents or more, and never all of them.
    """
    mask = np.zeros(count, bool)
    wanted = min(count - 1, max(1, round(fraction * count))) if fraction > 0 and count > 1 else 0
    mask[permutation(count, seed, "heldout")[:wanted]] = True
    return mask
