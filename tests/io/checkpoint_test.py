"""Checkpoints: what went in comes out bit for bit, and what is damaged is never used."""

import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.errors import CheckpointError
from jaxsae.io.checkpoint import Checkpoints, Retention


@flax.struct.dataclass
class State:
    params: dict
    opt: optax.OptState
    track: dict
    key: jax.Array
    step: jax.Array
    average: dict | None = None


def make_state(seed: int = 0, average: bool = False) -> State:
    w = jax.random.normal(jax.random.key(seed), (24, 16))
    params = {"W_enc": w, "b_enc": jnp.arange(16, dtype=jnp.bfloat16)}
    return State(
        params,
        optax.adam(1e-3).init(params),
        {"fired": {"since": jnp.arange(16, dtype=jnp.int32)}, "nan": jnp.full(3, jnp.nan)},
        jax.random.key(seed),
        jnp.int32(7),
        {"W_enc": w * 2} if average else None,
    )


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def raw(x) -> bytes:
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert raw(x) == raw(y)


def save(folder, *steps, **kwargs) -> None:
    with Checkpoints(folder, **kwargs) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), config={"type": "train", "k": 8}, progress={"tokens": step * 64})


def flip_bytes(step_folder: pathlib.Path, item: str = "params") -> None:
    """Sixteen altered bytes in the middle of each data file: what Orbax alone does not notice.

    In each, since some are left from before a merge and nobody reads them; now and then the largest is one of those.
    """
    for file in (step_folder / item).rglob("d/*"):
        data = bytearray(file.read_bytes())
        for i in range(len(data) // 2, len(data) // 2 + 16):
            data[i] ^= 0x5A
        file.write_bytes(data)


@pytest.fixture
def damaged_log(caplog):
    caplog.set_level(logging.WARNING, logger="jaxsae")
    return caplog


# ------------------------------------------------------------------------------------------------------------ roundtrip
@pytest.mark.parametrize("average", [False, True])
def test_everything_comes_back_bit_for_bit(tmp_path, average):
    state = make_state(average=average)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state, config={"type": "train", "lr": 3e-4}, progress={"seconds": 1.5})
        checkpoints.wait()
        found = checkpoints.restore(abstract(state))
    assert_same_bits(found.state, state)
    assert (found.meta.step, found.meta.config, found.meta.progress) == (
        7,
        {"type": "train", "lr": 3e-4},
        {"seconds": 1.5},
    )


def test_an_empty_folder_restores_nothing_and_a_missing_one_is_an_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state())) is None
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoints(tmp_path / "elsewhere", create=False)
    assert not (tmp_path / "elsewhere").exists()


def test_a_relative_path_is_fine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("run/checkpoints", 1)
    assert (tmp_path / "run/checkpoints/1").is_dir()


def test_parameters_alone_are_read_without_the_moments(tmp_path):
    save(tmp_path, 1, 2)
    for file in (tmp_path / "2/rest").rglob("d/*"):
        file.write_bytes(b"")
    with Checkpoints(tmp_path, create=False) as checkpoints:
        params, meta = checkpoints.params()
        assert meta.step == 2
        assert_same_bits(params, make_state(2).params)
        with pytest.raises(CheckpointError, match="average"):
            checkpoints.params(item="average")


def test_a_state_saved_on_one_mesh_comes_back_on_another(tmp_path):
    auto = (AxisType.Auto,) * 2
    old = jax.make_mesh((2, 4), ("data", "latent"), axis_types=auto)
    new = jax.make_mesh((8, 1), ("data", "latent"), axis_types=auto)
    state = make_state()
    spread = jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(old, P("latent") if x.shape == (16,) else P())), state
    )
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(new, P("data") if x.shape[:1] == (16,) else P())
        ),
        state,
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, spread)
        checkpoints.wait()
        found = checkpoints.restore(target).state
    assert_same_bits(found, state)
    assert found.params["b_enc"].sharding == NamedSharding(new, P("data"))


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    state = make_state()
    kept = jax.tree.map(lambda x: x.copy(), state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state.params)
        checkpoints.wait()
        assert_same_bits(checkpoints.restore(abstract(kept)).state, kept)


# ------------------------------------------------------------------------------------------------------------ retention
def test_the_latest_few_and_the_landmarks_stay(tmp_path):
    save(tmp_path, *range(1, 12), retention=Retention(latest=2, every_steps=5))
    with Checkpoints(tmp_path, create=False) as checkpoints:
        assert checkpoints.steps() == [5, 10, 11]


def test_a_step_already_there_is_left_alone(tmp_path):
    save(tmp_path, 4)
    before = (tmp_path / "4/meta/metadata").stat().st_mtime_ns
    save(tmp_path, 4)
    assert (tmp_path / "4/meta/metadata").stat().st_mtime_ns == before


# --------------------------------------------------------------------------------------------------------------- damage
def lose(folder: pathlib.Path, pattern: str) -> None:
    for file in list(folder.rglob(pattern)):
        if file.is_file():
            file.unlink()


DAMAGE = {
    "flipped bytes in the parameters": lambda f: flip_bytes(f),
    "flipped bytes in the moments": lambda f: flip_bytes(f, "rest"),
    "half-written data": lambda f: [os.truncate(p, p.stat().st_size // 2) for p in f.rglob("d/*")],
    "missing data": lambda f: lose(f / "params", "d/*"),
    "missing manifest": lambda f: lose(f / "rest", "manifest.ocdbt"),
    "missing metadata": lambda f: lose(f / "meta", "metadata"),
    "garbled metadata": lambda f: (f / "meta/metadata").write_text("{{{"),
    "no files at all": lambda f: lose(f, "*"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(tmp_path, damaged_log, capfd, how):
    save(tmp_path, 1, 2)
    DAMAGE[how](tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore(abstract(make_state()))
    assert_same_bits(found.state, make_state(1))
    assert [step for step, _ in found.skipped] == [2]
    assert f"checkpoint 2 in {tmp_path} is damaged" in damaged_log.text
    assert "Traceback" not in capfd.readouterr().err


def test_an_altered_number_in_the_metadata_is_noticed(tmp_path, damaged_log):
    save(tmp_path, 1, 2)
    file = tmp_path / "2/meta/metadata"
    file.write_text(file.read_text().replace('"tokens": 128', '"tokens": 129').replace('"tokens":128', '"tokens":129'))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state())).meta.step == 1
        with pytest.raises(CheckpointError, match="metadata does not match"):
            checkpoints.meta(2)


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path, damaged_log):
    save(tmp_path, 1, 2)
    (tmp_path / "2").rename(tmp_path / "3")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state())).meta.step == 1
    assert "it is of step 2" in damaged_log.text


def test_when_all_are_damaged_the_error_names_them(tmp_path, damaged_log):
    save(tmp_path, 1, 2)
    flip_bytes(tmp_path / "1")
    flip_bytes(tmp_path / "2", "rest")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match=r"2 is damaged.*1 is damaged"):
        checkpoints.restore(abstract(make_state()))
    assert (tmp_path / "1").is_dir()
    assert (tmp_path / "2").is_dir()


def test_a_run_that_went_back_can_save_the_damaged_step_anew(tmp_path, damaged_log):
    save(tmp_path, 1, 2)
    flip_bytes(tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        for step, _ in checkpoints.restore(abstract(make_state())).skipped:
            checkpoints.set_aside(step)
        assert checkpoints.steps() == [1]
        checkpoints.save(2, make_state(2))
    assert (tmp_path / "damaged-2").is_dir()
    with Checkpoints(tmp_path) as checkpoints:
        assert_same_bits(checkpoints.restore(abstract(make_state())).state, make_state(2))


def test_an_unknown_format_version_is_refused_by_name(tmp_path):
    save(tmp_path, 1, 2)
    file = tmp_path / "2/meta/metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match="format version 99"):
        checkpoints.restore(abstract(make_state()))


def test_another_model_is_refused_before_anything_is_read(tmp_path, capfd):
    save(tmp_path, 1)
    target = abstract(make_state())
    wide = target.replace(params=target.params | {"W_enc": jax.ShapeDtypeStruct((24, 32), jnp.float32)})
    more = target.replace(params=target.params | {"W_skip": jax.ShapeDtypeStruct((2,), jnp.float32)})
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=r"params.W_enc.*float32\[24, 32\].*float32\[24, 16\]"):
            checkpoints.restore(wide)
        with pytest.raises(CheckpointError, match=r"params.W_skip.*found nothing"):
            checkpoints.restore(more)
        with pytest.raises(CheckpointError, match=r"expected a checkpoint of step 3 .* found 1"):
            checkpoints.restore(target, step=3)
    assert capfd.readouterr().err == ""


# ------------------------------------------------------------------------------------------------ full disk, sudden end
def run_python(code: str, *args: str, **kwargs) -> subprocess.CompletedProcess:
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    program = textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", program, *args], env=env, capture_output=True, text=True, timeout=120, **kwargs
    )


def test_a_disk_that_fills_up_costs_the_new_checkpoint_only(tmp_path):
    code = """
        import resource, sys, jax, jax.numpy as jnp
        from jaxsae.errors import CheckpointError
        from jaxsae.io.checkpoint import Checkpoints
        small, big = {"params": {"w": jnp.ones(4)}}, {"params": {"w": jax.random.normal(jax.random.key(0), (512, 512))}}
        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(1, small); checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # writes beyond this fail, as on a full disk
        checkpoints.save(2, big)
        try: checkpoints.close()
        except CheckpointError as e: print(e)
    """
    done = run_python(code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "checkpoint of step 2 could not be written" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        assert checkpoints.restore({"params": {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}}).meta.step == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit() or "tmp" in p.name) == ["1"]


def test_a_disk_known_to_be_full_is_not_written_to(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=r"disk .* is full"):
            checkpoints.save(2, make_state())
        assert checkpoints.steps() == [1]


def test_a_process_killed_while_saving_leaves_the_previous_checkpoint(tmp_path):
    code = """
        import os, signal, sys, jax, jax.numpy as jnp
        from jaxsae.io.checkpoint import Checkpoints
        state = lambda i: {"params": {"w": jnp.full((2048, 2048), float(i))}}
        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(1, state(1)); checkpoints.wait()
        checkpoints.save(2, state(2))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_python(code, str(tmp_path)).returncode == -signal.SIGKILL
    assert [p for p in tmp_path.iterdir() if "tmp" in p.name], "the kill came too late to test anything"
    target = {"params": {"w": jax.ShapeDtypeStruct((2048, 2048), jnp.float32)}}
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore(target)
        assert found.meta.step == 1
        assert float(found.state["params"]["w"].max()) == 1.0
        checkpoints.save(2, {"params": {"w": jnp.zeros((2048, 2048))}})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]


def test_what_orbax_has_raised_is_not_logged_once_more_by_asyncio(caplog):
    log = logging.getLogger("asyncio")
    log.error("Task exception was never retrieved\nfuture: <Task coro=<f() defined at .../orbax/checkpoint/x.py>>")
    log.error("Task exception was never retrieved\nfuture: <Task coro=<f() defined at .../mine.py>>")
    assert [r for r in caplog.records if "orbax" in r.getMessage()] == []
    assert len(caplog.records) == 1
