"""The door to dictionaries on disk: `load` tells the format by its files, `save` writes any that can be written."""

import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxsae.data.store import Folder, local_copy
from jaxsae.errors import FormatError, closest
from jaxsae.io import hub
from jaxsae.io.formats._base import Notes
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._registry import Format, find, format_called, formats, recognised, the_format
from jaxsae.io.placement import place
from jaxsae.sae import SAE

#: Parts of a run directory that hold no dictionary.
WORKINGS = ("checkpoints", "members", "profile", "tensorboard", "wandb")


@dataclass(frozen=True)
class Written:
    """What `save` did.

    Attributes:
        path: where.
        format: in which format.
        folded: what had to be folded into the weights, in words.
        latent_scale: [S]: latent i of the written file is this many times ours; None if all are the same.
    """

    path: str
    format: str
    folded: tuple[str, ...]
    latent_scale: Any = field(default=None, compare=False, repr=False)


def load(
    where: str | os.PathLike[str],
    sae_id: str | None = None,
    *,
    format: str | None = None,
    mesh: Mesh | None = None,
    registry: str | os.PathLike[str] | None = None,
    **options: Any,
) -> SAE:
    """Reads a dictionary of any known format.

    The format is recognised by the names of files and keys.  Nothing in a file is executed, sizes are held against
    the file before memory is taken, and every array must have exactly the shape that the format prescribes.

    Args:
        where: a folder, one file of weights, an address hf://owner/repo/path on the Hugging Face hub, or the URL of a
            folder in a bucket (gs://, s3://), which is copied to this machine for the while; with `sae_id`, the name
            of a SAELens release.
        sae_id: name of a dictionary in that release.
        format: read it as this format; needed only where the files of two lie together.
        mesh: place arrays on this mesh, latents split along its axis `latent`; default: the first device.
        registry: file of releases (YAML or JSON); default: the one of an installed sae-lens.
        **options: facts that some formats do not store (see docs/formats.md), e.g. `top_k` for overcomplete.

    Returns:
        the frozen SAE; where it came from, and what had to be folded, stands in its `meta`.

    Raises:
        FormatError: naming the file, the key, what was expected and what was found.
        DataError: nothing lies behind the URL, or it cannot be read.

    Example:
        >>> import jax.numpy as jnp, tempfile
        >>> from jaxsae.sae import make_sae
        >>> sae = make_sae({"W_enc": jnp.eye(2), "b_enc": jnp.zeros(2), "W_dec": jnp.eye(2), "b_dec": jnp.zeros(2)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save(sae, folder + "/eye")
        ...     load(folder + "/eye").d_sae
        2
    """
    known: dict[str, Any] = {}
    if sae_id is not None:
        entry = hub.resolve(os.fspath(where), sae_id, registry)
        where, known = entry.url, {"norm_scaling_factor": entry.norm_scaling_factor, "overrides": entry.overrides}
    where = os.fspath(where).removeprefix("file://")
    if sae_id is None and not hub.is_address(where) and Folder(where).remote:
        with local_copy(Folder(where), skip=WORKINGS) as copy:
            return load(copy, format=format, mesh=mesh, **options)
    listing, found = _located(hub.fetch(str(where)) if hub.is_address(where) else where, format)
    # What a registry says about SAELens' own files; its corrections for other formats concern SAELens' readers only.
    options = {**{k: v for k, v in known.items() if v and k in found.OPTIONS}, **options}
    for name in options:
        if name not in found.OPTIONS:
            raise FormatError(f"format {found.NAME!r} takes no option {name!r}{closest(name, found.OPTIONS)}")
    return place(found.load(listing, options), mesh)


def _located(where: str | os.PathLike[str], format: str | None) -> tuple[Listing, Format]:
    """What lies there and its format; a folder that only holds one dictionary's folder stands for that."""
    listing = Listing(where)
    found = format_called(format) if format else the_format(listing)
    if found is not None:
        return listing, found
    inner = find(listing.root) if listing.focus is None else []
    if len(inner) == 1:
        listing = Listing(inner[0])
        found = the_format(listing)
    if found is None and inner:
        raise FormatError(
            f"{str(where)!r} holds {len(inner)} dictionaries; name one of them, such as {str(inner[0])!r}"
        )
    if found is None:
        shown = ", ".join(sorted(listing.files)[:8]) or "nothing"
        raise FormatError(
            f"{str(where)!r}: expected the files of a known format ({', '.join(formats())}), found {shown}"
        )
    return listing, found


def save(sae: SAE, path: str | os.PathLike[str], format: str = "jaxsae") -> Written:
    """Writes a dictionary.  What stood there is replaced only after the new files are complete.

    Args:
        sae: the dictionary.
        path: a folder; for formats of a single file also that file; or an address hf://owner/repo/path.
        format: name of a format that can be written; see docs/formats.md for what each can express.

    Returns:
        what was written, and what had to be folded.  A conversion is exact in real arithmetic or does not happen.

    Raises:
        FormatError: the format cannot express this dictionary (the message says why and which can), the folder holds
            files of another format, or the disk refuses.
    """
    if hub.is_address(path):
        with tempfile.TemporaryDirectory() as folder:
            written = save(sae, Path(folder) / "sae", format)
            return replace(written, path=hub.upload(written.path, str(path)))
    if Folder(path).remote:
        raise FormatError(
            f"{os.fspath(path)!r}: expected a local folder to write into, or hf://owner/repo/path; save it on "
            "this machine and copy it"
        )
    path = Path(os.fspath(path).removeprefix("file://"))
    writer = format_called(format, write=True)
    if path.is_dir():
        others = [name for name in recognised(Listing(path)) if name != format]
        if others:
            raise FormatError(
                f"{str(path)!r} holds files of the format {others[0]}: expected a new folder, or one of {format}; "
                "two formats in one folder cannot be told apart; choose another path"
            )
    notes = Notes()
    writer.save(sae, path, notes)
    return Written(str(path), format, tuple(notes.all), notes.latent_scale)
