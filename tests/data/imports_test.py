"""Imports: files of activations become a cache with the same rows and the same checks."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxsae.data import import_arrays, open_cache
from jaxsae.errors import ConfigError, DataError

X = np.random.default_rng(0).normal(size=(1500, 6)).astype(np.float32)


def rows_in_order(cache, site=None, group=256):
    """All rows of a cache in the order of the files."""
    out = np.full((len(X), cache.d(site)), np.nan, np.float32)
    for split in ("train", "heldout"):
        s = cache.split(split)
        origin = s.origin(np.arange(s.rows))
        out[origin.doc * group + origin.position] = s.read(0, s.rows, site).astype(np.float32)
    return out


def save(path, x=X):
    path = pathlib.Path(path)
    if path.suffix == ".npy":
        np.save(path, x)
    elif path.suffix == ".safetensors":
        safetensors.numpy.save_file({"acts": x}, path)
    else:
        torch = pytest.importorskip("torch")
        torch.save({"acts": torch.from_numpy(x)}, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", pytest.param(".pt", marks=pytest.mark.torch)])
def test_rows_and_origins(tmp_path, suffix):
    rows = import_arrays(save(tmp_path / f"x{suffix}"), tmp_path / "c", dtype="float32", shuffle_rows=400)
    assert sum(rows.values()) == 1500
    assert rows["heldout"] in (1500 % 256, 256)  # one group of six
    cache = open_cache(tmp_path / "c")
    np.testing.assert_array_equal(rows_in_order(cache), X)
    assert cache.sites == ("activations",)
    assert cache.done


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_types(tmp_path, dtype):
    if dtype == np.float64:
        path = save(tmp_path / "x.npy", X.astype(dtype))
    else:
        path = save(tmp_path / "x.safetensors", X.astype(dtype))
    import_arrays(path, tmp_path / "c", dtype="float32")
    np.testing.assert_array_equal(rows_in_order(open_cache(tmp_path / "c")), X.astype(dtype).astype(np.float32))


def test_files_follow_each_other_and_leading_axes_are_rows(tmp_path):
    paths = [save(tmp_path / "a.npy", X[:700].reshape(7, 100, 6)), save(tmp_path / "b.safetensors", X[700:])]
    import_arrays(paths, tmp_path / "c", dtype="float32", group=64, shuffle_rows=1000)
    np.testing.assert_array_equal(rows_in_order(open_cache(tmp_path / "c"), group=64), X)


def test_several_sites(tmp_path):
    paths = {"one": save(tmp_path / "a.npy"), "two": [save(tmp_path / "b.npy", -X[:, :3])]}
    import_arrays(paths, tmp_path / "c", dtype="float32")
    cache = open_cache(tmp_path / "c")
    np.testing.assert_array_equal(rows_in_order(cache, "one")[:, :3], -rows_in_order(cache, "two"))


def test_groups_are_not_divided(tmp_path):
    import_arrays(save(tmp_path / "x.npy"), tmp_path / "c", group=100, heldout_fraction=0.3)
    cache = open_cache(tmp_path / "c")
    docs = [set(cache.split(s).origin(np.arange(cache.split(s).rows)).doc.tolist()) for s in ("train", "heldout")]
    assert not docs[0] & docs[1]
    assert [len(d) for d in docs] == [11, 4] or [len(d) for d in docs] == [10, 5]


def test_interrupted_and_run_again_is_byte_identical(tmp_path):
    path = save(tmp_path / "x.npy")

    def stop(done, total):
        if done >= 600:
            raise KeyboardInterrupt

    import_arrays(path, tmp_path / "straight", shuffle_rows=300)
    with pytest.raises(KeyboardInterrupt):
        import_arrays(path, tmp_path / "c", shuffle_rows=300, say=stop)
    import_arrays(path, tmp_path / "c", shuffle_rows=300)
    for a in sorted((tmp_path / "straight").rglob("*")):
        if a.is_file():
            assert a.read_bytes() == (tmp_path / "c" / a.relative_to(tmp_path / "straight")).read_bytes()


def test_rows_that_are_not_finite_are_refused_with_their_number(tmp_path):
    x = X.copy()
    x[[5, 77, 900]] = np.nan
    with pytest.raises(DataError, match=r"[23] of \d+ rows at 'activations' hold NaN or infinity"):
        import_arrays(save(tmp_path / "x.npy", x), tmp_path / "c")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: t / "none.npy", r"none\.npy does not exist"),
        (lambda t: save(t / "x.npy", X[:, 0]), r"shape \[1500\], expected \[N, D\]"),
        (lambda t: save(t / "x.npy", X[:0]), "N and D above 0"),
        (lambda t: save(t / "x.npy", X.astype(np.int32)), "int32 values, expected floating point"),
        (lambda t: [save(t / "x.npy"), save(t / "y.npy", X[:, :2])], "one width"),
        (lambda t: {"a": save(t / "x.npy"), "b": save(t / "y.npy", X[:9])}, "equally many rows"),
    ],
)
def test_unusable_files(tmp_path, make, message):
    with pytest.raises(DataError, match=message):
        import_arrays(make(tmp_path), tmp_path / "c")


def test_unusable_arguments(tmp_path):
    with pytest.raises(DataError, match="rows of width 6, expected 7"):
        import_arrays(save(tmp_path / "x.npy"), tmp_path / "c", d_in=7)
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ConfigError, match=r"no known kind; expected \.npy, \.safetensors, \.pt"):
        import_arrays(tmp_path / "x.csv", tmp_path / "c")
    with pytest.raises(ConfigError, match="no file was named"):
        import_arrays([], tmp_path / "c")


def test_one_of_several_tensors(tmp_path):
    safetensors.numpy.save_file({"a": X, "b": -X}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="holds 2 tensors and none called None; possible: a, b; name one"):
        import_arrays(tmp_path / "x.safetensors", tmp_path / "c")
    import_arrays(tmp_path / "x.safetensors", tmp_path / "c", key="b", dtype="float32")
    np.testing.assert_array_equal(rows_in_order(open_cache(tmp_path / "c")), -X)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_damaged_files_are_named(tmp_path, suffix, damage):
    path = save(tmp_path / f"x{suffix}")
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-100], "noise": b"\xff" * 300, "empty": b""}[damage])
    with pytest.raises(DataError, match=rf"x\{suffix} (cannot be read|is cut off|is damaged)"):
        import_arrays(path, tmp_path / "c")


def test_nothing_in_a_file_is_executed(tmp_path):
    bomb = np.array([_Bomb()], dtype=object)
    np.save(tmp_path / "x.npy", bomb, allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        import_arrays(tmp_path / "x.npy", tmp_path / "c")
    assert not _Bomb.exploded


class _Bomb:
    exploded = False

    def __reduce__(self):
        return _explode, ()


def _explode():
    _Bomb.exploded = True


def test_another_file_does_not_continue_a_cache(tmp_path):
    import_arrays(save(tmp_path / "x.npy"), tmp_path / "c")
    with pytest.raises(DataError, match=r"another one than asked for.*corpus\.digest"):
        import_arrays(save(tmp_path / "x.npy", X + 1), tmp_path / "c")
    before = json.loads((tmp_path / "c/parts/part-00000/progress.json").read_text())
    assert before["done"]


@pytest.mark.torch
def test_bfloat16_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.from_numpy(X).bfloat16(), tmp_path / "x.pt")
    import_arrays(tmp_path / "x.pt", tmp_path / "c")
    np.testing.assert_array_equal(rows_in_order(open_cache(tmp_path / "c")), X.astype(ml_dtypes.bfloat16).astype("f4"))
