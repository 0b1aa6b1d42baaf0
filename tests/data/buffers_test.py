"""Recycled memory: used again as soon as, and never before, nobody refers to it."""

import gc

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxsae.data.buffers import Pool


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8])
def test_memory_is_used_again(dtype):
    pool = Pool()
    first = pool.take((5, 7), dtype)
    assert first.shape == (5, 7)
    assert first.dtype == dtype
    assert first.flags.writeable
    address = first.ctypes.data
    del first
    assert pool.take((5, 7), dtype).ctypes.data == address


def test_a_view_keeps_the_memory():
    pool = Pool()
    view = pool.take((8, 4), np.float32)[2:3, 1]
    view[:] = 7
    others = [pool.take((8, 4), np.float32) for _ in range(4)]
    for other in others:
        other[:] = 0
    assert view[0] == 7


@pytest.mark.parametrize("rows", [1, 4096])  # small arrays and large ones take different paths in jax
def test_a_device_array_keeps_the_memory(rows):
    """On CPU `device_put` may take the memory over without a copy: it must not be handed out again."""
    pool, kept = Pool(), []
    for i in range(6):
        host = pool.take((rows, 64), np.float32)
        host[:] = i
        kept.append(jax.device_put(host))
        del host
    for i, array in enumerate(kept):
        np.testing.assert_array_equal(np.asarray(array), np.full((rows, 64), i, np.float32))


def test_a_result_computed_later_keeps_the_memory():
    pool = Pool()
    total = jax.jit(lambda x: (x @ x.T).sum())
    results = []
    for i in range(8):
        host = pool.take((512, 512), np.float32)
        host[:] = i
        results.append(total(jax.device_put(host)))  # runs while the next one is filled
        del host
    np.testing.assert_allclose(np.array(results), [i * i * 512.0**3 for i in range(8)], rtol=1e-4)


def test_memory_returns_after_the_device_array():
    pool = Pool()
    host = pool.take((1024, 64), np.float32)
    address, array = host.ctypes.data, jax.device_put(host)
    array.block_until_ready()
    del host, array
    gc.collect()
    jax.device_put(np.zeros(1))  # jax lets go of what it held at its next call
    taken = [pool.take((1024, 64), np.float32) for _ in range(2)]
    assert address in [a.ctypes.data for a in taken]


def test_unused_memory_is_bounded():
    pool = Pool(keep=2)
    arrays = [pool.take((16,), np.float32) for _ in range(5)]
    del arrays
    assert sum(map(len, pool._free.values())) == 2


def test_empty():
    assert Pool().take((0, 3), np.float32).shape == (0, 3)
