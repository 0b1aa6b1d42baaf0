"""Gemma Scope: five arrays in `params.npz`, JumpReLU, no configuration."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxsae.io.formats._base import Notes, bad
from jaxsae.io.formats._build import affine, assemble, provenance
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._npz import npz_bytes
from jaxsae.io.formats._parts import parts
from jaxsae.io.formats._sidecar import write_with_notes
from jaxsae.sae import SAE, Threshold

NAME = "gemma_scope"
TITLE = "Gemma Scope params.npz"
OPTIONS: tuple[str, ...] = ()
WEIGHTS = "params.npz"
MARKS = {"threshold", "b_enc", "b_dec"}


def _file(listing: Listing) -> str | None:
    if listing.focus and listing.focus.endswith(".npz"):
        return listing.focus if listing.keys(listing.focus) >= MARKS else None
    return WEIGHTS if WEIGHTS in listing else None


def recognises(listing: Listing) -> bool:
    """The file's name, or the keys of an npz file that was named."""
    return _file(listing) is not None


def load(listing: Listing, options: dict[str, Any]) -> SAE:
    """Reads an SAE or transcoder; b_dec is not subtracted and rows are raw."""
    arrays = listing.arrays(_file(listing) or WEIGHTS)
    big = ("W_enc", "W_dec") if {"W_enc", "W_dec"} & set(arrays) else ("w_enc", "w_dec")
    arrays.only((*big, "b_enc", "b_dec", "threshold"), ("scaling_factor",))
    d, f = arrays.shape(big[0], "df")
    o = arrays.shape("b_dec", "o")[0]
    found = {
        "W_enc": arrays.take(big[0], (d, f)),
        "W_dec": arrays.take(big[1], (f, o)),
        "b_enc": arrays.take("b_enc", (f,)),
        "b_dec": arrays.take("b_dec", (o,)),
        "threshold": arrays.take("threshold", (f,)),
    }
    if "scaling_factor" in arrays and not np.all(arrays.take("scaling_factor", arrays["scaling_factor"].shape) == 1):
        bad(arrays.file, "scaling_factor", "ones", "other values")
    meta = provenance(NAME, "jumprelu", path="/".join(listing.root.parts[-3:]))
    return assemble(listing, found, encoder=affine(found, False), selector=Threshold(), meta=meta)


def save(sae: SAE, path: Path, notes: Notes) -> None:
    """Writes `params.npz` (or the `.npz` file that `path` names), always float32."""
    p = parts(sae, NAME, notes).fold_scaling()
    p.needs("jumprelu", "relu")
    p.needs_plain_rows(wide=True)
    p = p.uncentred().zero_threshold()
    order = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    arrays = {n: p.arrays[n].astype(np.float32, copy=False) for n in order}
    file = path if os.path.splitext(path)[1] == ".npz" else path / WEIGHTS
    write_with_notes(file, npz_bytes(arrays), NAME, sae, notes)
