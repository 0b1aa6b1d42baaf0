"""What a report or an evaluation is about: a dictionary with the host and the cache it belongs to."""

import hashlib
import json
import os
import pathlib
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from jax.sharding import Mesh

from jaxsae import hosts, parallel
from jaxsae.config import read_file
from jaxsae.data.cache import Cache, open_cache
from jaxsae.data.store import Folder, local_copy
from jaxsae.errors import CheckpointError, ConfigError
from jaxsae.evals.evaluate import check_host, site_of
from jaxsae.hosts import Host, HostMesh, Llama
from jaxsae.io import hub, load
from jaxsae.io.digest import digests
from jaxsae.io.files import WORKINGS
from jaxsae.parallel import Chosen, make_mesh
from jaxsae.parallel.choose import require_factor
from jaxsae.sae import SAE
from jaxsae.train.export import export
from jaxsae.train.logs import Record, read_records
from jaxsae.train.run_dir import RunDir


@dataclass(frozen=True)
class Subject:
    """A dictionary in its surroundings.

    Attributes:
        name: what it is called on the page.
        sae: the dictionary.
        cache: an activation cache of its site.
        host: the model the cache came from, or None to do without cross-entropies and promoted tokens.
        site: name of the site; None for the dictionary's own.
        log: records of its training, if there are any.
        evaluation: numbers measured earlier, if they are about this very dictionary.
        config: the training configuration as plain data, if known.
        folder: where results belong, perhaps a URL; None for a dictionary that lies nowhere.
        mesh: the mesh that dictionary and host were read onto, and why this one; None for the default device.
    """

    name: str
    sae: SAE
    cache: Cache
    host: Host | None = None
    site: str | None = None
    log: tuple[Record, ...] = ()
    evaluation: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    folder: pathlib.Path | str | None = None
    mesh: Chosen | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", site_of(self.sae, self.cache, self.site))
        if self.host is not None:
            check_host(self.cache, self.host)


def open_subject(
    path: str | os.PathLike,
    *,
    cache: str | os.PathLike | Cache | None = None,
    host: str | Host | None = "auto",
    site: str | None = None,
    like: Subject | None = None,
    mesh: HostMesh = HostMesh(),
    dtype: str | None = None,
) -> Subject:
    """A run directory, or any dictionary on disk, with its surroundings.

    Args:
        path: a run directory, a file or folder that `jaxsae.load` reads, or hf://owner/repo/path; behind a URL too.
        cache: None takes the one a run was trained on.
        host: "auto" loads the host that the cache names; None does without; else a host, or what `hosts.load` takes.
        site: None takes the dictionary's own.
        like: a subject at hand; what is not known otherwise is taken from it, and its host if it is the same.
        mesh: how host and dictionary are spread over the devices of this process: the dictionary lies where the host
            does, its latents along `latent`.
        dtype: of the weights and activations of a host that is loaded; None for what the cache was made with.

    Raises:
        CheckpointError: there is nothing at `path`, or a run that has no dictionary yet.
        ConfigError: a dictionary without a run, and no cache given.
        FormatError, DataError, HostError: what is there cannot be read, or does not belong together.
    """
    given = (cache, host, site, like, mesh, dtype)
    if hub.is_address(path) or not Folder(path).remote:
        run = RunDir(hub.fetch(os.fspath(path)) if hub.is_address(path) else path)
        return _open(run, run, *given)
    with local_copy(Folder(path), skip=WORKINGS) as copy:
        found = _open(RunDir(copy), RunDir(path), *given)
    return replace(found, folder=os.fspath(path).rstrip("/") if found.folder else None)


def _open(
    run: RunDir,
    place: RunDir,
    cache: str | os.PathLike | Cache | None,
    host: str | Host | None,
    site: str | None,
    like: Subject | None,
    mesh: HostMesh,
    dtype: str | None,
) -> Subject:
    """`open_subject` of a run on this machine, whose checkpoints lie in `place`."""
    if not run.path.exists():
        raise CheckpointError(f"there is no run and no dictionary at {str(run.path)!r}; check the path")
    is_run = run.config.exists()
    left_out = _left_out(run) if is_run else None
    if is_run and not run.sae.exists() and not left_out:
        raise CheckpointError(
            f"the run {str(run.path)!r} has no dictionary yet (no sae/); let `jaxsae train` finish it"
        )
    config = read_file(run.config) if is_run else {}
    wanted = cache or _cache_of(config, run) or (like.cache if like is not None else None)
    if wanted is None:
        raise ConfigError(f"{str(run.path)!r} does not say which activations it belongs to; name a cache (--cache)")
    opened = wanted if isinstance(wanted, Cache) else open_cache(wanted)
    if host == "auto" and like is not None and like.host is not None and like.host.matches(opened.manifest.host):
        on: tuple[Host | None, Chosen | None] = like.host, like.mesh
    else:
        on = _host(host, opened, mesh, dtype)
    there = on[1].mesh if on[1] else None
    if left_out:
        sae = export(place, member=left_out.get("best"), mesh=there)
    else:
        sae = load(run.sae if is_run else run.path, mesh=there)
    return Subject(
        name=run.path.name,
        sae=sae,
        cache=opened,
        host=on[0],
        site=site or config.get("hook_name"),
        log=tuple(read_records(run.log)) if is_run else (),
        evaluation=read_evaluation(run.path / "eval.json", sae) if is_run else None,
        config=config,
        folder=run.path if is_run else None,
        mesh=on[1],
    )


def _left_out(run: RunDir) -> dict[str, Any] | None:
    """The summary of a run that left its dictionary in the checkpoint, for want of memory to write it; else None."""
    try:
        found = json.loads(run.summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("left_out") else None


def _cache_of(config: dict[str, Any], run: RunDir) -> str | None:
    """The cache a run names; a relative path may mean a folder beside the run, if it is started from elsewhere."""
    name = config.get("cache")
    if not name or "://" in name or os.path.exists(name):
        return name
    beside = (parent / name for parent in run.path.parents)
    return str(next((p for p in beside if (p / "manifest.json").exists()), name))


def _host(
    host: str | Host | None, cache: Cache, config: HostMesh, dtype: str | None
) -> tuple[Host | None, Chosen | None]:
    """The host, and the mesh that it lies on if that is more than one device, or that is asked for without a host."""
    identity = cache.manifest.host
    found = identity.get("name") if host == "auto" else host
    kind = dtype or identity.get("dtype", "float32")
    chosen: Chosen | None = None

    def mesh(model: Llama) -> Mesh | None:
        nonlocal chosen
        windows = len(jax.local_devices())  # as many as there are devices, which an evaluation makes of its batches
        chosen = hosts.choose_mesh(config, model, kind, windows)
        return chosen.mesh if chosen.mesh.size > 1 else None

    if isinstance(found, str) and found:
        found = hosts.load(found, kind, mesh)
    elif found and config.asks and (asked := mesh(found.model)):
        found = hosts.place(found, asked)
    if not found:
        return None, _asked(config) if config.asks else None
    lies = parallel.mesh_of(found.params)
    return found, Chosen(lies, chosen.reason if chosen else "where the host lies") if lies else None


def _asked(config: HostMesh) -> Chosen:
    """The mesh of a dictionary without a host: over all devices of this process."""
    devices = jax.local_devices()
    require_factor(config, len(devices))
    data, latent = config.data, config.latent
    mesh = make_mesh(data or len(devices) // (latent or 1), latent or len(devices) // (data or 1), devices)
    return Chosen(mesh, "as the configuration says")


def fingerprint(sae: SAE) -> str:
    """16 hexadecimal digits that change when any weight does."""
    return hashlib.sha256(json.dumps(digests(sae.params), sort_keys=True).encode()).hexdigest()[:16]


def read_evaluation(path: pathlib.Path, sae: SAE) -> dict[str, Any] | None:
    """What `jaxsae eval` wrote, or None if it is missing, damaged, or about other weights than these."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("fingerprint") == fingerprint(sae) else None
