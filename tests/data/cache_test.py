"""Cache: what is written is what is read; what is not there, or is damaged, is never read."""

import json
import pathlib
import resource
import shutil

import ml_dtypes
import numpy as np
import pytest

from jaxsae.data import Block, CacheSource, CacheWriter, Manifest, open_cache
from jaxsae.data.store import Folder, explained
from jaxsae.data.writer import dequantise, quantise
from jaxsae.errors import DataError

T = 16


def block(seed, rows=100, windows=8, sites=(("a", 12),), scale=1.0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 50, (windows, T))
    index = np.sort(rng.choice(windows * T, rows, replace=False))
    x = {name: (scale * rng.normal(size=(rows, d))).astype(np.float32) for name, d in sites}
    doc = 10 * seed + np.repeat(np.arange(windows)[:, None], T, 1)
    return Block(x, doc.reshape(-1)[index], index % T, index, tokens, doc)


def both(i):
    return {"train": block(2 * i), "heldout": block(2 * i + 1, rows=30, windows=4)}


def manifest(**changes):
    fields = {"sites": (("a", 12),), "text": {"context_size": T}, "shard_rows": 128, "seed": 1}
    return Manifest(**{**fields, **changes})


def write(path, blocks=3, finish=True, **changes):
    writer = CacheWriter(path, manifest(**changes))
    for i in range(writer.progress.blocks, blocks):
        writer.commit(both(i), {"next": i + 1}, {"x": 2})
    if finish:
        writer.finish()
    return writer


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(pathlib.Path(folder).rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------------- round trip
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_rows_come_back_with_their_origin(tmp_path, dtype, compression):
    write(tmp_path / "c", dtype=dtype, compression=compression)
    cache = open_cache(tmp_path / "c")
    split = cache.split("train")
    assert split.rows == 300
    assert cache.done
    assert cache.dropped == {"x": 6}
    x, origin = split.read(0, 300), split.origin(np.arange(300))
    written = {}
    for i in range(3):
        b = block(2 * i)
        for doc, position, row in zip(b.doc, b.position, b.rows["a"], strict=True):
            written[int(doc), int(position)] = row, b.tokens[doc - 20 * i, position]
    assert len(written) == 300
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    context = split.context(np.arange(300))
    for row, doc, position, tokens, at in zip(x, *origin, *context, strict=True):
        expected, token = written[int(doc), int(position)]
        np.testing.assert_array_equal(row, expected.astype(kind))
        assert tokens[at] == token == cache.document(int(doc))[position]


def test_rows_are_shuffled_within_a_block(tmp_path):
    write(tmp_path / "c", blocks=1)
    origin = open_cache(tmp_path / "c").split("train").origin(np.arange(100))
    assert (np.diff(origin.doc) < 0).any()


def test_int8_error_is_at_most_half_a_step(tmp_path):
    write(tmp_path / "f", dtype="float32")
    write(tmp_path / "q", dtype="int8")
    x, q = (open_cache(tmp_path / name).split("train").read(7, 250) for name in "fq")
    assert q.dtype == np.float32
    step = np.abs(x).max(1, keepdims=True) / 127
    assert (np.abs(x - q) <= 0.501 * step).all()


def test_quantise_keeps_zeros_and_the_largest():
    x = np.array([[0, 0], [3, -1.5]], np.float32)
    np.testing.assert_allclose(dequantise(*quantise(x)), x, atol=1.5 / 127)
    np.testing.assert_array_equal(dequantise(*quantise(x))[0], [0, 0])


def test_zeros_are_data(tmp_path):
    """A chunk of nothing but zeros is stored, and reads as zeros, not as a missing chunk."""
    writer = CacheWriter(tmp_path / "c", Manifest(sites=(("a", 4),)))
    writer.commit({"train": Block({"a": np.zeros((200, 4), np.float32)}, np.zeros(200), np.zeros(200))})
    split = open_cache(tmp_path / "c").split("train")
    np.testing.assert_array_equal(split.read(0, 200).astype(np.float32), 0)
    np.testing.assert_array_equal(split.origin(np.arange(200)).doc, 0)


def test_statistics_are_of_the_stored_rows(tmp_path):
    write(tmp_path / "c")
    cache = open_cache(tmp_path / "c")
    for split in ("train", "heldout"):
        x = cache.split(split).read(0, cache.split(split).rows).astype(np.float64)
        stats = cache.stats("a", split)
        np.testing.assert_allclose(stats.mean, x.mean(0), atol=1e-6)
        np.testing.assert_allclose(stats.mean_norm, np.linalg.norm(x, axis=1).mean(), rtol=1e-6)


def test_several_sites_stay_together(tmp_path):
    sites = (("a", 12), ("b", 12))
    writer = CacheWriter(tmp_path / "c", manifest(sites=sites, dtype="float32"))
    b = block(0, sites=sites)
    b.rows["b"][:] = -b.rows["a"]
    writer.commit({"train": b})
    split = open_cache(tmp_path / "c").split("train")
    np.testing.assert_array_equal(split.read(0, 100, "a"), -split.read(0, 100, "b"))
    with pytest.raises(DataError, match="2 sites; name one"):
        split.read(0, 1)


def test_parts_are_read_as_one(tmp_path):
    for part in (1, 0):
        writer = CacheWriter(tmp_path / "c", manifest(parts=2), part)
        writer.commit({"train": block(part, rows=90 + part)})
        writer.finish()
    split = open_cache(tmp_path / "c").split("train")
    assert split.rows == 181
    x = split.read(0, 181)
    np.testing.assert_array_equal(split.read(80, 100), x[80:100])
    np.testing.assert_array_equal(split.take([120, 3, 90]), x[[120, 3, 90]])
    np.testing.assert_array_equal(np.unique(split.origin(np.arange(90, 181)).doc // 10), [1])
    context, origin = split.context([0, 100]), split.origin([0, 100])
    for part in (0, 1):
        window = origin.doc[part] - 10 * part
        np.testing.assert_array_equal(context.tokens[part], block(part).tokens[window])
    start, length = split.chunks()
    assert start.tolist() == [0, 64, 90, 154]
    assert length.tolist() == [64, 26, 64, 27]


def test_other_stores_through_the_same_code():
    write("memory://test-cache")
    cache = open_cache("memory://test-cache")
    assert cache.split("train").read(0, 300).shape == (300, 12)
    writer = CacheWriter("memory://test-cache", manifest())  # and can be gone on with
    writer.commit({"train": block(9)})
    assert open_cache("memory://test-cache").split("train").rows == 400


def test_batches_read_all_rows_in_order(tmp_path):
    write(tmp_path / "c")
    split = open_cache(tmp_path / "c").split("train")
    np.testing.assert_array_equal(np.concatenate(list(split.batches(77))), split.read(0, 300))


def test_documents(tmp_path):
    write(tmp_path / "c", blocks=1)
    cache = open_cache(tmp_path / "c")
    assert sorted(cache.documents) == [*range(8), *range(10, 14)]
    np.testing.assert_array_equal(cache.document(3), block(0).tokens[3])
    assert 99 not in cache.documents
    with pytest.raises(DataError, match="document 99"):
        cache.document(99)


# ------------------------------------------------------------------------------------------------- going on
def test_reopened_between_blocks_is_byte_identical(tmp_path):
    write(tmp_path / "straight", blocks=4)
    for blocks in (1, 2, 4):
        write(tmp_path / "stopped", blocks=blocks, finish=blocks == 4)
    assert files(tmp_path / "straight") == files(tmp_path / "stopped")


def test_rows_after_the_last_commit_do_not_exist(tmp_path, monkeypatch):
    """A writer that dies between the rows and the progress file leaves longer arrays behind."""
    write(tmp_path / "straight", blocks=3)
    write(tmp_path / "c", blocks=2, finish=False)
    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "_save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "c", blocks=3)
    (tmp_path / "c/parts/part-00000/train/rows/a/c/0/9.__lock").write_text("half a file")
    cache = open_cache(tmp_path / "c")
    assert cache.split("train").rows == 200
    cache.split("train").read(0, 200)
    with pytest.raises(DataError, match="do not exist"):
        cache.split("train").read(0, 201)
    write(tmp_path / "c", blocks=3)
    assert files(tmp_path / "straight") == files(tmp_path / "c")


def test_a_failed_commit_changes_nothing_and_can_be_repeated(tmp_path):
    write(tmp_path / "straight", blocks=3)
    writer = write(tmp_path / "c", blocks=2, finish=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = open_cache(tmp_path / "c").split("train").read(0, 200)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # no file may grow beyond: as good as a full disk
    try:
        with pytest.raises(DataError, match=r"cannot be written: the disk is full; make room .* goes on where it was"):
            writer.commit(both(2), {"next": 3}, {"x": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    np.testing.assert_array_equal(open_cache(tmp_path / "c").split("train").read(0, 200), before)
    writer.commit(both(2), {"next": 3}, {"x": 2})
    writer.finish()
    assert files(tmp_path / "straight") == files(tmp_path / "c")


def test_no_space_left_is_one_sentence():
    recorded = 'RESOURCE_EXHAUSTED: Failed writing: "/x/m.json.__lock": Failed to write 83904 bytes to file 4: '
    with (
        pytest.raises(DataError, match=r"^x cannot be written: the disk is full; make room") as e,
        explained("x cannot be written"),
    ):
        raise ValueError(recorded + "No space left on device [os_error_code='28']")
    assert "\n" not in str(e.value)


# ------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
def test_rows_that_are_not_finite_are_refused(tmp_path, bad, dtype):
    writer = write(tmp_path / "c", blocks=1, finish=False, dtype=dtype)
    b = block(5)
    b.rows["a"][[3, 50, 51], 2] = bad
    with pytest.raises(DataError, match="3 of 100 rows at 'a' hold NaN or infinity"):
        writer.commit({"train": b})
    assert open_cache(tmp_path / "c").split("train").rows == 100
    writer.commit({"train": block(5)})
    assert open_cache(tmp_path / "c").split("train").rows == 200


def test_rows_of_another_width_are_refused(tmp_path):
    writer = CacheWriter(tmp_path / "c", manifest())
    with pytest.raises(DataError, match=r"'a' have shape \(100, 13\), expected \(100, 12\)"):
        writer.commit({"train": block(0, sites=(("a", 13),))})


def test_no_cache(tmp_path):
    with pytest.raises(DataError, match="holds no activation cache"):
        open_cache(tmp_path / "nothing")
    CacheWriter(tmp_path / "empty", manifest())
    with pytest.raises(DataError, match="holds no rows yet"):
        open_cache(tmp_path / "empty")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"host": {"digest": "other"}}, "host.digest"),
        ({"dtype": "float32"}, "dtype"),
        ({"sites": (("b", 12),)}, "sites"),
        ({"text": {"context_size": T, "bos": "window"}}, "text.bos"),
        ({"seed": 2}, "seed"),
    ],
)
def test_another_cache_in_the_folder_is_refused_by_name(tmp_path, changes, named):
    write(tmp_path / "c")
    before = files(tmp_path / "c")
    with pytest.raises(DataError, match=f"another one than asked for.*{named}: "):
        CacheWriter(tmp_path / "c", manifest(**changes))
    assert files(tmp_path / "c") == before


def test_what_the_host_was_called_does_not_matter(tmp_path):
    write(tmp_path / "c", host={"name": "a", "digest": "d"})
    CacheWriter(tmp_path / "c", manifest(host={"name": "/path/to/a", "digest": "d"}))


def test_a_cache_without_rows_may_be_redefined(tmp_path):
    CacheWriter(tmp_path / "c", manifest())
    CacheWriter(tmp_path / "c", manifest(seed=2))
    assert Folder(tmp_path / "c").read_json("manifest.json")["seed"] == 2


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="holds other files"):
        CacheWriter(tmp_path, manifest())


@pytest.mark.parametrize("file", ["manifest.json", "parts/part-00000/progress.json"])
@pytest.mark.parametrize("version", [2, None, "1"])
def test_an_unknown_version_is_refused_by_name(tmp_path, file, version):
    write(tmp_path / "c")
    path = tmp_path / "c" / file
    folder, name = Folder(path.parent), path.name
    folder.write_json(name, folder.read_json(name) | {"format_version": version})
    with pytest.raises(DataError, match=f"format version {version!r}, this jaxsae knows version 1"):
        open_cache(tmp_path / "c")


def test_a_foreign_manifest_is_refused(tmp_path):
    Folder(tmp_path).write_json("manifest.json", {"format": "zoo", "format_version": 1})
    with pytest.raises(DataError, match=r"of the format 'zoo', expected 'jaxsae\.cache'"):
        open_cache(tmp_path)


@pytest.mark.parametrize("file", ["manifest.json", "parts/part-00000/progress.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "list"])
def test_a_damaged_json_file_is_named(tmp_path, file, damage):
    write(tmp_path / "c")
    path = tmp_path / "c" / file
    text = path.read_text()
    new = {"cut": text[: len(text) // 2], "changed": text.replace("12", "13", 1), "empty": "", "list": "[1]"}[damage]
    path.write_text(new)
    with pytest.raises(DataError, match=f"{path.name} is damaged"):
        open_cache(tmp_path / "c")


def test_changed_length_in_progress_is_noticed(tmp_path):
    write(tmp_path / "c")
    path = tmp_path / "c/parts/part-00000/progress.json"
    data = json.loads(path.read_text())
    data["rows"]["train"] = 1000
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"progress\.json is damaged"):
        open_cache(tmp_path / "c")


# ------------------------------------------------------------------------------------------------- damaged rows
@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "missing", "swapped"])
def test_a_damaged_chunk_is_named(tmp_path, damage):
    write(tmp_path / "c")
    folder = tmp_path / "c/parts/part-00000/train/rows/a/c"
    path = folder / "1/0"
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[300] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "swapped":
        shutil.copy(tmp_path / "c/parts/part-00000/heldout/doc/c/0", path)
    else:
        path.unlink()
    cache = open_cache(tmp_path / "c")
    split = cache.split("train")
    assert split.read(0, 128).shape == (128, 12)  # the shard before is fine
    for read in (lambda: split.read(128, 192), lambda: [CacheSource(cache, 100).batch(i) for i in range(3)]):
        with pytest.raises(DataError, match=r"rows \d+ to \d+ of train/a of .* cannot be read: .*restore") as e:
            read()
        assert str(path) in str(e.value) or damage == "swapped"
        assert "\n" not in str(e.value)


def test_a_missing_array_is_named(tmp_path):
    write(tmp_path / "c")
    shutil.rmtree(tmp_path / "c/parts/part-00000/train/rows")
    with pytest.raises(DataError, match="train/rows/a cannot be opened"):
        open_cache(tmp_path / "c").split("train").read(0, 1)


def test_a_part_that_was_never_written_has_no_rows(tmp_path):
    writer = CacheWriter(tmp_path / "c", manifest(parts=2), 1)
    writer.commit({"train": block(0)})
    writer.finish()
    cache = open_cache(tmp_path / "c")
    assert cache.split("train").rows == 100
    assert not cache.done


@pytest.mark.parametrize("call", ["split", "site", "rows", "take", "windows"])
def test_asking_for_what_is_not_there(tmp_path, call):
    write(tmp_path / "c")
    cache = open_cache(tmp_path / "c")
    calls = {
        "split": lambda: cache.split("test"),
        "site": lambda: cache.d("blocks.0.hook"),
        "rows": lambda: cache.split("train").read(5, 4),
        "take": lambda: cache.split("train").take([300]),
        "windows": lambda: cache.split("heldout").read_windows(0, 13),
    }
    with pytest.raises(DataError, match=r"no split|no site|do not exist|does not exist"):
        calls[call]()
