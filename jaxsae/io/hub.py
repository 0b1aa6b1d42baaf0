"""Dictionaries on the Hugging Face hub: fetched with only the files they need, checked, and kept.

    folder = fetch("hf://owner/repo/path@revision")      a folder (or file) on this machine, ready for `load`
    upload(folder, "hf://owner/repo/path")
    resolve("gpt2-small-res-jb", "blocks.8.hook_resid_pre").url

Files lie in the hub library's own cache.  What a fetch brought, and with which digests, is recorded under `home()`, so
that the same address works without a network afterwards.
"""

import dataclasses
import hashlib
import json
import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from jaxsae.errors import FormatError, JaxsaeError, closest
from jaxsae.io._address import PREFIX, Address
from jaxsae.io._releases import Entry, resolve
from jaxsae.packages import home, sha256

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WEIGHTS = (".safetensors", ".npz", ".pt")
CONFIGS = (".json", ".yaml", ".yml")
#: Left in the folder by training runs, never needed for inference, and often larger than the dictionary.
LEFTOVERS = re.compile(r"(optimizer|scheduler|trainer_state|activations_store_state|sparsity|rank_)[^/]*")
#: The one kind of weights in a subfolder: the older OpenMOSS layout.
INNER = re.compile(r"checkpoints/(pruned|final)\.(safetensors|pt)")
#: A configuration beside weights is fetched with them if it is at most this large.
CONFIG_BYTES = 1 << 20
TIMEOUT_SECONDS = 10
COMMIT = re.compile(r"[0-9a-f]{40}")


def is_address(where: object) -> bool:
    """Whether a place is on the hub.

    Example:
        >>> is_address("hf://owner/repo"), is_address("runs/sae")
        (True, False)
    """
    return isinstance(where, str) and where.startswith(PREFIX)


# ---------------------------------------------------------------------------------------------------------- fetch
def fetch(url: str, *, cache: str | os.PathLike[str] | None = None, token: str | None = None) -> Path:
    """Brings a dictionary from the hub to this machine and returns where it lies.

    Of a folder the weights and configurations directly in it are fetched (and `checkpoints/final` of the older
    OpenMOSS layout), of a file that file and the configurations beside it.  Every file must have the digest that the
    hub states for its commit: SHA-256 for large files, the git object id for small ones.

    Args:
        url: hf://owner/repo/path, optionally with @revision (a branch, tag or commit; default main).
        cache: folder of the hub library's cache; None for its default ($HF_HOME).
        token: access token; None for the one of `hf auth login`.

    Returns:
        path of the folder or file; afterwards the same call works without a network.

    Raises:
        FormatError: no such repository, revision or path; no dictionary there; a file that does not match its digest;
            no network and nothing kept; no room on the disk.

    Example:
        >>> folder = fetch("hf://jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre")   # doctest: +SKIP
    """
    address = Address.parse(url)
    kept = _Record.read(address)
    if kept and COMMIT.fullmatch(address.revision) and kept.intact():
        return Path(kept.place)
    from huggingface_hub import utils

    api = _api(token)
    try:
        info = api.model_info(address.repo, revision=address.revision, expand=["sha"], timeout=TIMEOUT_SECONDS)
        if kept and kept.commit == info.sha and kept.intact():
            return Path(kept.place)
        pinned = dataclasses.replace(address, revision=str(info.sha))
        record = _download(api, pinned, _needed(api, pinned, address), cache, token)
    except JaxsaeError:
        raise
    except Exception as e:
        if kept and kept.intact() and not _is_answer(e):
            if not isinstance(e, utils.OfflineModeIsEnabled):
                _say(f"the hub cannot be reached; using the copy of {address} fetched earlier ({kept.commit[:8]})")
            return Path(kept.place)
        raise _explained(e, address, "no earlier copy is kept, and the first use needs a network") from e
    record.write(address)
    return Path(record.place)


def _needed(api: "HfApi", pinned: Address, address: Address) -> list[Any]:
    """The entries of the hub's listing that make up the dictionary.  `address` is as the user wrote it."""
    if not pinned.path:
        return _of_folder(api, pinned, address)
    found = api.get_paths_info(pinned.repo, [pinned.path], revision=pinned.revision)
    if not found:
        names = _names(api, pinned, str(PurePosixPath(pinned.path).parent))
        raise FormatError(f"{address}: no such path in the repository{closest(pinned.path, names)}")
    if not hasattr(found[0], "size"):
        return _of_folder(api, pinned, address)
    folder = PurePosixPath(pinned.path).parent
    above = [folder, folder.parent] if folder.name == "checkpoints" else [folder]
    beside = [f for parent in above for f in _files(api, pinned, str(parent))]
    return [found[0], *(f for f in beside if f.path.endswith(CONFIGS) and f.size <= CONFIG_BYTES)]


def _of_folder(api: "HfApi", pinned: Address, address: Address) -> list[Any]:
    entries = _entries(api, pinned, pinned.path)
    files = [e for e in entries if hasattr(e, "size") and _is_needed(PurePosixPath(e.path).name)]
    folders = [PurePosixPath(e.path).name for e in entries if not hasattr(e, "size")]
    if "checkpoints" in folders:
        inner = _files(api, pinned, f"{pinned.path}/checkpoints".strip("/"))
        files += [f for f in inner if INNER.fullmatch("/".join(f.path.split("/")[-2:]))]
    if not any(f.path.endswith(WEIGHTS) for f in files):
        shown = ", ".join(sorted(folders)[:8]) + (", ..." if len(folders) > 8 else "")
        hint = f"; it has the folders {shown}: name one of them" if folders else ""
        raise FormatError(f"{address}: expected files of weights ({', '.join(WEIGHTS)}), found none{hint}")
    return files


def _is_needed(name: str) -> bool:
    return name.endswith(WEIGHTS + CONFIGS) and not name.startswith(".") and not LEFTOVERS.fullmatch(name)


def _entries(api: "HfApi", pinned: Address, folder: str) -> list[Any]:
    path = None if folder in ("", ".") else folder
    return list(api.list_repo_tree(pinned.repo, path, revision=pinned.revision))


def _files(api: "HfApi", pinned: Address, folder: str) -> list[Any]:
    return [e for e in _entries(api, pinned, folder) if hasattr(e, "size")]


def _names(api: "HfApi", pinned: Address, folder: str) -> list[str]:
    try:
        return [e.path for e in _entries(api, pinned, folder)]
    except Exception:  # only for a hint
        return []


def _download(api: "HfApi", pinned: Address, entries: list[Any], cache: Any, token: str | None) -> "_Record":
    root, sizes = Path(), {}
    for entry in entries:
        local = Path(
            api.hf_hub_download(pinned.repo, entry.path, revision=pinned.revision, cache_dir=cache, token=token)
        )
        root = local.parents[len(PurePosixPath(entry.path).parts) - 1]
        _check(local, entry, pinned)
        sizes[entry.path] = entry.size
    return _Record(pinned.revision, str(root / pinned.path), str(root), sizes)


def _check(local: Path, entry: Any, pinned: Address) -> None:
    """Holds a file against the digest the hub states; a damaged one is removed, so that it is fetched anew."""
    wanted = entry.lfs.sha256 if entry.lfs else entry.blob_id
    found = sha256(local) if entry.lfs else _git_id(local)
    if found != wanted:
        real = local.resolve()
        local.unlink()
        real.unlink(missing_ok=True)
        kind = "SHA-256" if entry.lfs else "git id"
        raise FormatError(
            f"{pinned.repo}: {entry.path} was damaged on its way ({kind} {found}, expected {wanted}); it has been "
            "removed: try again"
        )


def _git_id(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Record:
    """What a fetch brought: proof that all of it arrived and was checked."""

    commit: str
    place: str
    root: str
    sizes: dict[str, int]

    @staticmethod
    def file(address: Address) -> Path:
        name = f"{address.path}@{address.revision}".replace("%", "%25").replace("/", "%2F")
        return home() / "hub" / address.repo / f"{name}.json"

    @classmethod
    def read(cls, address: Address) -> "_Record | None":
        try:
            return cls(**json.loads(cls.file(address).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def intact(self) -> bool:
        try:
            return all((Path(self.root) / name).stat().st_size == size for name, size in self.sizes.items())
        except OSError:
            return False

    def write(self, address: Address) -> None:
        path = self.file(address)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
            os.replace(part, path)
        except OSError as e:  # the files themselves are there
            _say(f"{address} was fetched but cannot be recorded in {path.parent} ({e.strerror or e})")


# ---------------------------------------------------------------------------------------------------------- upload
def upload(
    folder: str | os.PathLike[str],
    url: str,
    *,
    message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Puts a saved dictionary on the hub in one commit, making the repository if there is none.

    Args:
        folder: what `save` wrote: a folder, or one file.
        url: hf://owner/repo/path; with @branch, onto that branch.
        message: of the commit.
        private: whether a new repository is private; None for the owner's default.
        token: access token with write permission; None for the one of `hf auth login`.

    Returns:
        the address of exactly this upload, ending in @commit.

    Raises:
        FormatError: nothing at `folder`, no permission, or no network.

    Example:
        >>> upload("runs/quickstart/sae", "hf://me/my-saes/layer_20")   # doctest: +SKIP
    """
    address, source = Address.parse(url), Path(folder)
    if not source.exists():
        raise FormatError(f"{str(source)!r}: expected a saved dictionary to upload, found nothing; check the path")
    if source.is_file() and not address.path.endswith(source.suffix):
        address = dataclasses.replace(address, path=f"{address.path}/{source.name}".strip("/"))
    from huggingface_hub import CommitOperationAdd

    api = _api(token)
    try:
        api.create_repo(address.repo, private=private, exist_ok=True)
        done = api.create_commit(
            address.repo,
            [CommitOperationAdd(target, local) for target, local in _uploads(source, address.path)],
            commit_message=message or f"Upload {address.path or source.name}",
            revision=address.revision,
        )
    except Exception as e:
        raise _explained(e, address, "an upload needs a network") from e
    return str(dataclasses.replace(address, revision=done.oid))


def _uploads(source: Path, path: str) -> list[tuple[str, Path]]:
    """(path in the repository, local file) of everything to upload; hidden files stay."""
    if source.is_file():
        return [(path, source)]
    inside = [(p.relative_to(source), p) for p in sorted(source.rglob("*")) if p.is_file()]
    shown = [(name.as_posix(), p) for name, p in inside if not any(part.startswith(".") for part in name.parts)]
    return [(f"{path}/{name}".strip("/"), p) for name, p in shown]


# ---------------------------------------------------------------------------------------------------------- errors
def _api(token: str | None) -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token, library_name="jaxsae")


def _is_answer(e: Exception) -> bool:
    """Whether the hub itself said no, as opposed to not being reached or being down."""
    from huggingface_hub.utils import HFValidationError

    return isinstance(e, HFValidationError) or 400 <= _status(e) < 500


def _chain(e: BaseException | None) -> list[BaseException]:
    """An error and what it was raised from: the hub library wraps what it met in errors of its own."""
    found: list[BaseException] = []
    while e is not None and e not in found:
        found.append(e)
        e = e.__cause__
    return found


def _status(e: Exception) -> int:
    """The HTTP status an error carries, 0 for none."""
    found = [getattr(getattr(x, "response", None), "status_code", None) for x in _chain(e)]
    return next((status for status in found if status), 0)


def _is_network(e: BaseException) -> bool:
    """Whether an error comes from the transport; the hub library has changed its HTTP client more than once."""
    clients = {c.__module__.split(".")[0] for c in type(e).__mro__} & {"requests", "urllib3", "httpx", "httpx2"}
    return bool(clients) or isinstance(e, (ConnectionError, TimeoutError))


def _explained(e: Exception, address: Address, need: str) -> FormatError:
    """One sentence for whatever the hub library raised; `need` says what a network would be needed for."""
    from huggingface_hub import utils

    status = _status(e)
    if isinstance(e, utils.GatedRepoError):
        said = "the repository is gated; accept its terms on its page and log in with `hf auth login`"
    elif isinstance(e, utils.RepositoryNotFoundError):
        said = "no such repository, or a private one; check the name, or log in with `hf auth login`"
    elif isinstance(e, utils.RevisionNotFoundError):
        said = f"the repository has no revision {address.revision!r}; check it, or leave it out for main"
    elif isinstance(e, utils.HFValidationError):
        said = f"{address.repo!r} cannot be the name of a repository; expected owner/name"
    elif status in (401, 403):
        said = f"the hub refused (HTTP {status}); log in with `hf auth login` and check your permissions"
    elif status:
        said = f"the hub answered HTTP {status}; try again later"
    elif any(isinstance(x, utils.OfflineModeIsEnabled) for x in _chain(e)):
        said = f"HF_HUB_OFFLINE is set; {need}: unset it"
    elif any(_is_network(x) for x in _chain(e)):
        said = f"the hub cannot be reached; {need}"
    elif isinstance(e, OSError) and e.errno:
        said = f"{e.strerror} ({e.filename}); make room, or set HF_HOME to another folder"
    else:
        said = f"the transfer failed ({(str(e).splitlines() or [type(e).__name__])[0]}); try again"
    return FormatError(f"{address}: {said}")


def _say(text: str) -> None:
    print(f"jaxsae: {text}", file=sys.stderr, flush=True)


__all__ = ["Address", "Entry", "fetch", "is_address", "resolve", "upload"]
