"""Where the dictionaries of a SAELens release lie, read from its registry file."""

import dataclasses
import functools
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import yaml

from jaxsae.errors import FormatError, closest
from jaxsae.io._address import PREFIX, Address


@dataclasses.dataclass(frozen=True)
class Entry:
    """One dictionary of a SAELens release.

    Attributes:
        url: where it lies, for `fetch`.
        model: the host's name.
        conversion: name of the reader SAELens uses; None for its own format.
        norm_scaling_factor: input scaling that the files do not hold; None for none.
        overrides: configuration values the registry corrects.
    """

    url: str
    model: str = ""
    conversion: str | None = None
    norm_scaling_factor: float | None = None
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)


def resolve(release: str, sae_id: str, registry: str | os.PathLike[str] | None = None) -> Entry:
    """Finds the hub address of a SAELens (release, sae_id) pair.

    Args:
        release: name of a release, e.g. "gpt2-small-res-jb"; as in SAELens, an unlisted owner/repo stands for itself.
        sae_id: name of one dictionary in it.
        registry: YAML or JSON in the form of SAELens' `pretrained_saes.yaml`; None for the one of an installed
            sae-lens, which is read but not imported.

    Raises:
        FormatError: no registry, no such release or id (with the nearest name), or a registry of another form.

    Example:
        >>> resolve("gpt2-small-res-jb", "blocks.8.hook_resid_pre").url    # doctest: +SKIP
        'hf://jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre'
    """
    path = Path(registry) if registry is not None else _installed_registry()
    releases = {} if path is None else _read_registry(path, _modified(path))
    if release not in releases:
        if release.count("/") == 1:
            return Entry(str(Address.parse(f"{PREFIX}{release}/{sae_id}")))
        if path is None:
            raise FormatError(
                f"release {release!r}: no registry of releases found; install sae-lens, or give registry=FILE"
            )
        raise FormatError(f"{path}: no release {release!r}{closest(release, releases)}")
    own = releases[release]
    try:
        ids = {str(s["id"]): s for s in own["saes"]}
        if sae_id not in ids:
            raise FormatError(f"{path}: release {release!r} has no dictionary {sae_id!r}{closest(sae_id, ids)}")
        found = ids[sae_id]
        url = str(Address.parse(f"{PREFIX}{own['repo_id']}/{found['path']}"))
        factor = found.get("norm_scaling_factor")
        return Entry(
            url,
            model=str(own.get("model") or ""),
            conversion=own.get("conversion_func"),
            norm_scaling_factor=None if factor is None else float(factor),
            overrides=dict(own.get("config_overrides") or {}),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise FormatError(
            f"{path}: release {release!r} should have 'repo_id' and a list 'saes' of entries with 'id' and 'path'; "
            f"found {_shape_of(own)}"
        ) from e


def _shape_of(own: Any) -> str:
    return f"the keys {', '.join(map(str, own))}" if isinstance(own, dict) else type(own).__name__


def _installed_registry() -> Path | None:
    spec = importlib.util.find_spec("sae_lens")
    places = spec.submodule_search_locations if spec else None
    found = [Path(p) / "pretrained_saes.yaml" for p in places or ()]
    return next((p for p in found if p.is_file()), None)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as e:
        raise FormatError(f"{path}: expected a registry of releases (YAML or JSON), found nothing: {e.strerror}") from e


@functools.lru_cache(maxsize=4)
def _read_registry(path: Path, modified: int) -> dict[str, Any]:
    """All releases by name.  `modified` makes a changed file a new cache entry."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the file is large; JSON is a subset of YAML
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=loader)
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise FormatError(f"{path}: expected a registry of releases (YAML or JSON), found {_line(e)}") from e
    if not isinstance(data, dict):
        raise FormatError(f"{path}: expected releases by name, found {type(data).__name__}")
    return data


def _line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]
