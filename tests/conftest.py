"""One process-wide setting for all tests: eight fake CPU devices, strict shapes, no network."""

import contextlib
import importlib.metadata
import importlib.util
import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs with Ctrl-C ignored, and children inherit it; tests of interrupts need it back.
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests compile far more than they compute: without the expensive passes, and with the older emitter of fusions (a step
# compiles in a third of the time), the suite takes a fraction of the time.  The older emitter's tanh is less exact, as
# the slope of a saturated one shows: where torch is there to compare with, the ordinary emitter is used.  XLA aborts at
# a flag it does not know, and from jax 0.11 on there is no older emitter.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + (
        " --xla_cpu_use_fusion_emitters=false"
        if importlib.util.find_spec("torch") is None
        and tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11)
        else ""
    ),
)

import jax
import pytest

try:
    jax.config.update("jax_num_cpu_devices", 8)
except RuntimeError as e:  # pragma: no cover - only if something imported jax and used it before
    raise RuntimeError("a plugin used jax before tests/conftest.py could ask for eight devices") from e
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
    return jax.random.key(0)
