"""Checkpoints behind URLs: the same promises as on a disk, in stores that can neither append nor rename."""

import importlib.util
import json
import pathlib
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.data.store import Folder
from jaxsae.errors import CheckpointError
from jaxsae.io import _store_files
from jaxsae.io.checkpoint import Checkpoints, Retention

_spec = importlib.util.spec_from_file_location("on_disk", pathlib.Path(__file__).with_name("checkpoint_test.py"))
_disk = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_disk)
make_state, abstract, assert_same_bits, save = _disk.make_state, _disk.abstract, _disk.assert_same_bits, _disk.save


@pytest.fixture(params=["memory", "gs"])
def url(request, gcs, tmp_path):
    return f"{request.param}://{'bucket/' if request.param == 'gs' else ''}{tmp_path.name}/checkpoints"


def test_what_went_in_comes_out_bit_for_bit(url):
    save(url, 3, 7)
    with Checkpoints(url, create=False) as checkpoints:
        assert checkpoints.steps() == [3, 7]
        found = checkpoints.restore(abstract(make_state()))
        assert_same_bits(found.state, make_state(7))
        assert_same_bits(checkpoints.restore(abstract(make_state()), 3).state, make_state(3))
        params, meta = checkpoints.params()
    assert (meta.step, meta.config, meta.progress) == (7, {"type": "train", "k": 8}, {"tokens": 448})
    assert set(params) == {"W_enc", "b_enc"}


def test_the_state_may_be_donated_while_it_is_written(url, monkeypatch):
    go, real = threading.Event(), Folder.begin_plain
    monkeypatch.setattr(Folder, "begin_plain", lambda *a: go.wait() and real(*a))
    state = {"params": {"w": jnp.arange(1000.0)}}
    with Checkpoints(url) as checkpoints:
        checkpoints.save(1, state)
        jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state))
        go.set()
        checkpoints.wait()
        assert float(checkpoints.params()[0]["w"].sum()) == 499500.0


def test_the_newest_and_the_landmarks_stay_and_the_rest_goes_with_all_its_objects(url):
    save(url, 1, 2, 3, 4, 5, retention=Retention(latest=2, every_steps=3))
    assert {n.split("/")[0] for n in Folder(url).names() if n[0].isdigit()} == {"3", "4", "5"}
    with Checkpoints(url) as checkpoints:
        assert checkpoints.steps() == [3, 4, 5]


def test_what_a_killed_save_left_does_not_count_and_is_written_over(url):
    save(url, 1, 2)
    Folder(url).delete("done/2.json")  # killed just before its end
    with Checkpoints(url) as checkpoints:
        assert checkpoints.steps() == [1]
        checkpoints.save(2, make_state(9))
        checkpoints.wait()
        assert_same_bits(checkpoints.restore(abstract(make_state())).state, make_state(9))


W = "2/params.W_enc"
DAMAGE = {
    "flipped bytes": lambda f: f.write(f"{W}/c/0/0", f.read(f"{W}/c/0/0")[:-9] + b"123456789"),
    "half a piece": lambda f: f.write(f"{W}/c/0/0", f.read(f"{W}/c/0/0")[:100]),
    "a missing piece": lambda f: f.delete(f"{W}/c/0/0"),
    "a missing array": lambda f: f.delete(f"{W}/"),
    "a garbled array": lambda f: f.write(f"{W}/zarr.json", b"{{{"),
    "garbled metadata": lambda f: f.write("done/2.json", b"{{{"),
    "an altered number": lambda f: f.write("done/2.json", f.read("done/2.json").replace(b"128", b"129")),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_one_is_named_and_the_previous_one_used(url, how):
    save(url, 1, 2)
    DAMAGE[how](Folder(url))
    with Checkpoints(url) as checkpoints:
        found = checkpoints.restore(abstract(make_state()))
        assert_same_bits(found.state, make_state(1))
        assert [step for step, _ in found.skipped] == [2]
        checkpoints.set_aside(2)
        assert checkpoints.steps() == [1]
    assert "damaged/2.json" in Folder(url).names()


def test_a_store_that_refuses_is_no_damage_and_nothing_is_given_up(gcs):
    save("gs://bucket/run/checkpoints", 1, 2)
    gcs.refuse = lambda method, name: method == "GET" and "/2/params.W_enc/c" in name
    with (
        Checkpoints("gs://bucket/run/checkpoints") as checkpoints,
        pytest.raises(CheckpointError, match=r"W_enc cannot be read: PERMISSION_DENIED.*run again when it can be"),
    ):
        checkpoints.restore(abstract(make_state()))


def test_a_failed_upload_is_told_and_leaves_the_older_ones(gcs):
    save("gs://bucket/run/checkpoints", 1)
    gcs.refuse = lambda method, name: method == "POST" and "/2/" in name and "/c/" in name
    checkpoints = Checkpoints("gs://bucket/run/checkpoints")
    checkpoints.save(2, make_state(2))
    with pytest.raises(
        CheckpointError, match=r"step 2 could not be written to 'gs://bucket/run/checkpoints'.*PERMISSION_DENIED"
    ):
        checkpoints.wait()
    assert checkpoints.steps() == [1]
    assert_same_bits(checkpoints.restore(abstract(make_state())).state, make_state(1))


def test_it_does_not_count_before_what_it_waits_for(url):
    def fail():
        raise CheckpointError("the log did not get there")

    checkpoints = Checkpoints(url)
    checkpoints.save(1, make_state(), before=fail)
    with pytest.raises(CheckpointError, match="the log did not get there"):
        checkpoints.wait()
    assert checkpoints.steps() == []


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (2, 4)])
def test_each_device_writes_and_reads_its_own_part(url, shape):
    mesh = jax.make_mesh(shape, ("data", "latent"), axis_types=(AxisType.Auto,) * 2)
    x = np.random.default_rng(0).standard_normal((16, 32), np.float32)
    spread = jax.device_put(x, NamedSharding(mesh, P("data", "latent")))
    with Checkpoints(url) as checkpoints:
        checkpoints.save(1, {"params": {"w": spread}})
        checkpoints.wait()
        for spec in (P("latent", "data"), P(None, "latent"), P()):
            wanted = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
            found = checkpoints.restore({"params": {"w": wanted}}).state["params"]["w"]
            assert found.sharding == wanted.sharding
            np.testing.assert_array_equal(np.asarray(found), x)
    assert len([n for n in Folder(url).names("1") if "/c/" in n]) == 8


def test_a_large_part_is_cut_into_equal_pieces(url, monkeypatch):
    monkeypatch.setattr(_store_files, "PIECE_BYTES", 100)
    state = {"params": {"w": jnp.arange(60.0).reshape(12, 5), "none": jnp.zeros((0, 3)), "one": jnp.float32(4)}}
    with Checkpoints(url) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        assert_same_bits(checkpoints.restore(jax.eval_shape(lambda: state)).state, state)
    assert len([n for n in Folder(url).names("1") if "params.w/c/" in n]) == 3


def test_a_copy_on_a_disk_is_read_and_one_made_on_a_disk_is_refused_behind_a_url(url, tmp_path):
    save(url, 1, 2)
    folder = Folder(url)
    for name in folder.names():
        Folder(tmp_path / "copy").write(name, folder.read(name))
    save(tmp_path / "copy", 3)
    with Checkpoints(tmp_path / "copy", create=False) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        assert_same_bits(checkpoints.restore(abstract(make_state())).state, make_state(3))
    save(tmp_path / "disk", 1)
    for file in filter(pathlib.Path.is_file, (tmp_path / "disk").rglob("*")):
        Folder(f"{url}-2").write(file.relative_to(tmp_path / "disk").as_posix(), file.read_bytes())
    with pytest.raises(CheckpointError, match="made in a local folder; copy the run back to a disk"):
        Checkpoints(f"{url}-2")
    shutil.rmtree(tmp_path / "disk")


def test_the_metadata_lies_open(url):
    save(url, 5)
    meta = json.loads(Folder(url).read("done/5.json"))
    assert (meta["format"], meta["step"]) == ("jaxsae.checkpoint", 5)
