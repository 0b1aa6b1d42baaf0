"""What several tests of kernels share."""

import functools
import types

import pytest

from jaxsae.kernels import _tpu

#: Functions of the kernels' modules that take `interpret`.
INTERPRETED = ("decode", "dots", "decode_and_dots", "sparse_grad", "sparse_adam")


@pytest.fixture
def tpu_interpreter(monkeypatch):
    """The TPU kernels over rows run in the interpreter, whose memory starts as NaN; the ops around them as they are."""
    real = _tpu.module

    def module(op, name="pallas_tpu"):
        from jax.experimental.pallas import tpu as pltpu

        here, how = real(op, name), pltpu.InterpretParams(uninitialized_memory="nan")
        there = {n: functools.partial(getattr(here, n), interpret=how) for n in INTERPRETED if hasattr(here, n)}
        return types.SimpleNamespace(**there)

    monkeypatch.setattr(_tpu, "module", module)
