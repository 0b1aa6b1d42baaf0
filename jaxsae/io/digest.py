"""A checksum per array that does not care how the array is spread over devices.

Orbax restores a file with flipped bits without a word, so a checkpoint carries these digests and a restore compares
them.  They are computed where the data lies: integer addition is associative, so the sum over shards is the same on
one device, on eight, or on a pod whose processes each see only their part, and nothing is gathered on a host.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.typing import Array, PyTree

_LANES = (0x9E3779B1, 0x85EBCA77)  # odd: multiplying by them is invertible modulo 2^32


def flatten(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by dotted path, e.g. `{"params.W_enc": ..., "opt.0.mu.W_enc": ...}`, in tree order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def is_key(leaf: Any) -> bool:
    """Whether a leaf (array or abstract array) holds typed random keys, which only `jax.random` may look into."""
    return jnp.issubdtype(getattr(leaf, "dtype", np.dtype("O")), jax.dtypes.prng_key)


def digests(tree: PyTree) -> dict[str, str]:
    """The digest of every leaf, by dotted path: 16 hexadecimal digits.

    With `w_i` the bits of element i and `m` the 32-bit finaliser of MurmurHash3, a bijection, one lane is
    `sum_i m(w_i xor ((i + 1) * c)) mod 2^32`; two lanes with different odd `c` make 64 bits.  One altered element
    always changes it; several altered or exchanged elements go unnoticed with probability 2^-64.  It guards against
    accidents, not against an adversary.

    Args:
        tree: real arrays (any integer, float or bool type), typed random keys included, sharded in any way.

    Returns:
        path -> digest.  Equal for equal bits: `-0.0` and `0.0` differ, two NaNs of one pattern do not.

    Example:
        >>> digests({"w": jnp.arange(4.0)}) == digests({"w": np.arange(4, dtype=np.float32)})
        True
    """
    raw = {path: jax.random.key_data(x) if is_key(x) else x for path, x in flatten(tree).items()}
    lanes = jax.device_get({path: _lanes(x) for path, x in raw.items()})
    return {path: "".join(f"{int(lane):08x}" for lane in pair) for path, pair in lanes.items()}


@jax.jit
def _lanes(x: Array) -> tuple[Array, ...]:
    words = _words(x)
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):  # row-major position, without a reshape, which would move shards
        index = index * np.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return tuple(jnp.sum(_mix(words ^ ((index + 1) * np.uint32(c))), dtype=jnp.uint32) for c in _LANES)


def _words(x: Array) -> Array:
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)  # 64 bits become a pair, a last axis
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(h: Array) -> Array:
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
