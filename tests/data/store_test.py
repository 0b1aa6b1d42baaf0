"""A folder on a disk or behind a URL: files come and go whole, by the same calls."""

import pytest

from jaxsae.data.store import Folder, local_copy
from jaxsae.errors import DataError


@pytest.fixture(params=["gs", "memory", "disk"])
def folder(request, gcs, tmp_path):
    places = {"gs": "gs://bucket/", "memory": f"memory://{tmp_path.name}/", "disk": f"{tmp_path}/"}
    return Folder(places[request.param] + "store")


def test_files_are_written_listed_read_and_deleted(folder):
    for name in ("a/b", "a/c/d", "ab", "e"):
        folder.write(name, name.encode())
    folder.write("e", b"again")
    assert folder.names() == ["a/b", "a/c/d", "ab", "e"]
    assert folder.names("a") == ["a/b", "a/c/d"]
    assert (folder.read("e"), folder.read("none")) == (b"again", None)
    folder.delete("a/")
    folder.delete("e")
    folder.delete("none")
    assert folder.names() == ["ab"]


def test_many_files_are_all_listed(folder):
    waiting = [folder.begin_write(f"many/{i:03d}", b"x") for i in range(120)]
    for wait in waiting:
        wait()
    assert folder.names("many") == [f"many/{i:03d}" for i in range(120)]


def test_a_copy_holds_the_files_but_for_what_is_skipped_and_goes_again(folder):
    for name in ("sae/x.json", "log.jsonl", "checkpoints/1/w"):
        folder.write(name, name.encode())
    with local_copy(folder, skip=("checkpoints",)) as copy:
        found = {p.relative_to(copy).as_posix(): p.read_text() for p in copy.rglob("*") if p.is_file()}
        assert copy.name == "store"
    assert found == {"sae/x.json": "sae/x.json", "log.jsonl": "log.jsonl"}
    assert not copy.exists()
    with pytest.raises(DataError, match=f"{folder}: unreadable"), local_copy(folder) as copy:
        raise DataError(f"{copy}: unreadable")


def test_a_name_that_leads_out_of_the_folder_is_refused(gcs, tmp_path):
    gcs.objects["bucket", "store/../../evil"] = (1, b"evil")
    with pytest.raises(DataError, match="leads out of its folder"), local_copy(Folder("gs://bucket/store")):
        pass
