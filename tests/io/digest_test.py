"""Digests: equal for equal bits wherever the array lies, different for any altered element."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.io.digest import digests, flatten


def by_hand(x: np.ndarray) -> str:
    """The formula of the docstring in numpy, one 64-bit accumulator per lane."""
    words = np.ascontiguousarray(x).reshape(-1).view(f"u{min(x.itemsize, 4)}").astype(np.uint32)
    out = ""
    for c in (0x9E3779B1, 0x85EBCA77):
        h = words ^ (np.arange(1, words.size + 1, dtype=np.uint64) * c % 2**32).astype(np.uint32)
        h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
        h = h ^ (h >> 16)
        out += f"{int(h.astype(np.uint64).sum()) % 2**32:08x}"
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint32"])
@pytest.mark.parametrize("shape", [(), (5, 7), (3, 4, 5)])
def test_matches_the_formula_written_in_numpy(dtype, shape):
    x = np.asarray(jax.random.normal(jax.random.key(1), shape) * 50).astype(jnp.dtype(dtype))
    assert digests({"x": x}) == {"x": by_hand(x)}


def test_every_single_flipped_bit_changes_it():
    x = np.arange(6, dtype=np.float32)
    seen = {digests(x)[""]}
    for bit in range(x.nbytes * 8):
        flipped = x.copy()
        flipped.view(np.uint8)[bit // 8] ^= 1 << (bit % 8)
        seen.add(digests(flipped)[""])
    assert len(seen) == 1 + x.nbytes * 8


def test_order_and_zero_sign_count():
    x = jnp.asarray([1.0, 2.0, 0.0])
    assert len({digests(v)[""] for v in (x, x[::-1], x[jnp.array([1, 0, 2])], x.at[2].set(-0.0))}) == 4


@pytest.mark.parametrize("spec", [P("data", "latent"), P(None, "latent"), P("latent", None), P()])
def test_sharding_does_not_change_it(spec):
    mesh = jax.make_mesh((2, 4), ("data", "latent"), axis_types=(AxisType.Auto,) * 2)
    x = jax.random.normal(jax.random.key(0), (16, 24))
    assert digests({"x": jax.device_put(x, NamedSharding(mesh, spec))}) == digests({"x": x})


def test_random_keys_and_names():
    tree = {"params": {"W": jnp.ones((2, 2))}, "key": jax.random.key(3), "on": jnp.asarray([True, False])}
    assert list(digests(tree)) == list(flatten(tree)) == ["key", "on", "params.W"]
    assert digests(tree)["key"] != digests(tree | {"key": jax.random.key(4)})["key"]
    assert digests(tree)["on"] != digests(tree | {"on": jnp.asarray([False, True])})["on"]
