"""The bounded readers against the libraries that own the containers."""

import collections
import io
import pickle
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxsae.errors import FormatError
from jaxsae.io.formats._npz import npz_bytes, open_npz
from jaxsae.io.formats._pt import open_pt, pt_bytes
from jaxsae.io.formats._safetensors import chunks, open_safetensors
from jaxsae.io.formats._write import write_file, write_files

DTYPES = ["float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"]
shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)
tables = st.dictionaries(
    st.text("abcdefg.0123_", min_size=1, max_size=12),
    st.tuples(shapes, st.sampled_from(DTYPES)),
    min_size=1,
    max_size=6,
)


def filled(table, seed=0):
    rng = np.random.default_rng(seed)
    return {n: np.asarray(rng.standard_normal(shape) * 9).astype(dtype) for n, (shape, dtype) in table.items()}


def read_all(arrays):
    return {n: e.read() for n, e in arrays.entries.items()}


def same(a, b):
    assert set(a) == set(b)
    for n in a:
        np.testing.assert_array_equal(a[n], b[n])
        assert a[n].dtype == b[n].dtype


@settings(max_examples=40, deadline=None)
@given(tables)
def test_safetensors_both_ways_against_the_library(tmp_path_factory, table):
    folder, arrays = tmp_path_factory.mktemp("st"), filled(table)
    save_file(arrays, folder / "theirs.safetensors")
    same(read_all(open_safetensors(folder / "theirs.safetensors")), arrays)
    write_file(folder / "ours.safetensors", chunks(arrays, {"note": "x"}))
    same(load_file(folder / "ours.safetensors"), arrays)


@settings(max_examples=40, deadline=None)
@given(tables, st.booleans())
def test_npz_both_ways_against_numpy(tmp_path_factory, table, compressed):
    folder, arrays = tmp_path_factory.mktemp("npz"), filled(table)
    (np.savez_compressed if compressed else np.savez)(folder / "theirs.npz", **{f"a{n}": a for n, a in arrays.items()})
    same(read_all(open_npz(folder / "theirs.npz")), {f"a{n}": a for n, a in arrays.items()})
    write_file(folder / "ours.npz", npz_bytes(arrays))
    with np.load(folder / "ours.npz") as found:
        same(dict(found), arrays)


@settings(max_examples=40, deadline=None)
@given(tables)
def test_pt_round_trip(tmp_path_factory, table):
    folder, arrays = tmp_path_factory.mktemp("pt"), filled(table)
    scalars = {"zz_name": "TopK", "zz_state": {"k": 5, "post": "ReLU"}, "zz_none": None, "zz_flag": True, "zz_f": 1.5}
    write_file(folder / "a.pt", pt_bytes({**arrays, **scalars}))
    found = open_pt(folder / "a.pt")
    same(read_all(found), arrays)
    assert found.scalars == {
        "zz_name": "TopK", "zz_state.k": 5, "zz_state.post": "ReLU", "zz_none": None, "zz_flag": True, "zz_f": 1.5
    }  # fmt: skip


@pytest.mark.torch
def test_pt_against_torch(tmp_path):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    base = torch.tensor(rng.standard_normal((6, 4)).astype(np.float32))
    content = collections.OrderedDict(
        plain=base, transposed=base.T, part=base[2:, 1:], scalar=torch.tensor(3, dtype=torch.int32),
        half=base.to(torch.bfloat16), parameter=torch.nn.Parameter(base * 2), name="TopK", state={"k": 3},
    )  # fmt: skip
    torch.save(content, tmp_path / "theirs.pt")
    found = open_pt(tmp_path / "theirs.pt")
    for name in ("plain", "transposed", "part", "scalar", "parameter"):
        np.testing.assert_array_equal(found[name].read(), content[name].detach().numpy())
    np.testing.assert_array_equal(found["half"].read().astype(np.float32), content["half"].float().numpy())
    assert found.scalars == {"name": "TopK", "state.k": 3}
    arrays = {"a": rng.standard_normal((3, 5)).astype(np.float32), "n": np.asarray(7, np.int64)}
    arrays["b"] = arrays["a"].astype(ml_dtypes.bfloat16)
    write_file(tmp_path / "ours.pt", pt_bytes({**arrays, "activation": "TopK", "state": {"k": 4}}))
    back = torch.load(tmp_path / "ours.pt", weights_only=True)
    np.testing.assert_array_equal(back["a"].numpy(), arrays["a"])
    assert int(back["n"]) == 7
    np.testing.assert_array_equal(back["b"].float().numpy(), arrays["b"].astype(np.float32))
    assert back["activation"] == "TopK"
    assert back["state"] == {"k": 4}


def zip_with(pickled, **others):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for name, data in others.items():
            archive.writestr(f"a/{name}", data)
    return buffer.getvalue()


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_no_pickle_runs_anything(tmp_path, protocol):
    proof = tmp_path / "proof"
    (tmp_path / "a.pt").write_bytes(zip_with(pickle.dumps({"a": Touch(proof)}, protocol)))
    with pytest.raises(FormatError, match=r"a\.pt"):
        open_pt(tmp_path / "a.pt")
    assert not proof.exists()


def test_a_memo_index_out_of_reach_costs_nothing(tmp_path):
    (tmp_path / "a.pt").write_bytes(zip_with(b"\x80\x02}r\xff\xff\xff\x7f."))
    tracemalloc.start()
    open_pt(tmp_path / "a.pt")  # a dict, stored under a huge memo index
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_what_lies_behind_references_is_bounded(tmp_path):
    """A dict that holds itself many times over, level upon level, would never be flattened to the end."""
    level = b"}q\x00X\x01\x00\x00\x00aK\x01s"
    for i in range(1, 60):
        level += (
            b"}q"
            + bytes([i])
            + b"".join(b"X\x01\x00\x00\x00" + bytes([c]) + b"h" + bytes([i - 1]) + b"s" for c in b"ab")
        )
    (tmp_path / "a.pt").write_bytes(zip_with(b"\x80\x02" + level + b"."))
    with pytest.raises(FormatError, match="at most"):
        open_pt(tmp_path / "a.pt")


def test_an_older_pt_file_is_named_as_such(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps(1, 2))
    with pytest.raises(FormatError, match=r"before torch 1\.6"):
        open_pt(tmp_path / "a.pt")


def test_members_beyond_the_32_bit_sizes_are_described_in_64_bits():
    """The directory of an archive whose members would pass 4 GiB, without writing them."""
    from jaxsae.io.formats._npz import stored_zip

    class Huge(bytes):
        def __len__(self):
            return 5 * 2**30

    pieces = list(stored_zip([("big", [Huge(b"x")]), ("small", [b"abc"])]))
    head, directory = pieces[0], pieces[4]
    assert (5 * 2**30).to_bytes(8, "little") in head
    assert directory.count((5 * 2**30).to_bytes(8, "little")) >= 1
    assert any(p[:4] == b"PK\x06\x06" for p in pieces[5:])


def test_reading_takes_the_files_size_once(tmp_path):
    arrays = {"a": np.ones((1024, 1024), np.float32), "b": np.ones((512, 1024), np.float32)}
    write_file(tmp_path / "a.safetensors", chunks(arrays))
    tracemalloc.start()
    found = read_all(open_safetensors(tmp_path / "a.safetensors"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(a.nbytes for a in arrays.values())
    assert size <= peak < 1.05 * size
    assert all(a.ctypes.data % 64 == 0 for a in found.values())


def test_a_failed_set_of_files_replaces_none(tmp_path):
    (tmp_path / "a").write_bytes(b"old a")
    (tmp_path / "b").write_bytes(b"old b")

    def breaks():
        yield b"new"
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        write_files(tmp_path, {"a": [b"new a"], "b": breaks()})
    assert (tmp_path / "a").read_bytes() == b"old a"
    assert (tmp_path / "b").read_bytes() == b"old b"
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


def test_the_disk_full_is_one_sentence():
    with pytest.raises(FormatError, match="could not be written"):
        write_file(__import__("pathlib").Path("/dev/full/x"), [b"a"])
