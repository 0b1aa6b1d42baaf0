"""One process-wide setting for all tests: eight fake CPU devices, strict shapes, no network."""

import contextlib
import importlib.metadata
import importlib.util
import os
import pathlib
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs with Ctrl-C ignored, and children inherit it; tests of interrupts need it back.
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # So does nohup with a lost terminal, which the launch scripts' tests play.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _xla_flags() -> str:
    """Tests compile far more than they compute; XLA aborts at a flag it does not know, so each goes by version.

    Without the expensive passes, and with the older emitter of fusions (a step compiles in a third of the time), the
    suite takes a fraction of the time.  The older emitter's tanh is less exact, as the slope of a saturated one shows:
    where torch is there to compare with, the ordinary emitter is used; from jax 0.11 on there is no older one.  Eight
    devices on a busy machine may wait for each other longer than XLA's 40 seconds, after which it ends the process.
    """
    jaxlib = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
    flags = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    if jaxlib < (0, 11) and importlib.util.find_spec("torch") is None:
        flags.append("--xla_cpu_use_fusion_emitters=false")
    if jaxlib >= (0, 10):
        flags.append("--xla_cpu_collective_call_terminate_timeout_seconds=600")
    return " ".join(flags)


os.environ.setdefault("XLA_FLAGS", _xla_flags())

import jax  # noqa: E402
import pytest  # noqa: E402

try:
    jax.config.update("jax_num_cpu_devices", 8)
except RuntimeError as e:  # pragma: no cover - only if something imported jax and used it before
    raise RuntimeError("a plugin used jax before tests/conftest.py could ask for eight devices") from e
jax.config.update("jax_numpy_rank_promotion", "raise")


#: Bytes a test process may hold before its compiled programs are dropped: a run of the suite takes several processes.
MOST_RESIDENT = 2 * 2**30


def _resident() -> int:
    """Bytes of memory in use; 0 where the system does not tell it in this way."""
    statm = pathlib.Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


@pytest.fixture(scope="module", autouse=True)
def _drop_programs():
    """Programs compiled for one file of tests are of little use to the next; all of a run's took 8 GB a process."""
    yield
    if _resident() > MOST_RESIDENT:
        jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def _gcs_server():
    """One for all tests, since TensorStore may keep its address."""
    spec = importlib.util.spec_from_file_location("fake_gcs", pathlib.Path(__file__).with_name("fake_gcs.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.FakeGcs()
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = server.url
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "a token"  # or it looks for credentials, and says so
    yield server
    server.close()


@pytest.fixture
def gcs(_gcs_server):
    """A Google Cloud Storage on this machine, empty: gs://any-bucket."""
    _gcs_server.objects.clear()
    _gcs_server.uploads.clear()
    _gcs_server.refuse = lambda method, name: False
    return _gcs_server
