"""OpenAI's sparse_autoencoder: one `.pt` state dict, with the activation's name between the arrays."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxsae.io.formats._arrays import FLOATS, Arrays
from jaxsae.io.formats._base import Config, Notes, bad, refuse
from jaxsae.io.formats._build import affine, assemble, provenance
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._parts import ABLE, parts
from jaxsae.io.formats._pt import pt_bytes
from jaxsae.io.formats._sidecar import write_with_notes
from jaxsae.io.formats._weights import transposed
from jaxsae.sae import SAE, Linear, NoNorm, Rank, Relu, RowNorm, RowRule

NAME = "openai"
TITLE = "OpenAI sparse_autoencoder .pt"
OPTIONS: tuple[str, ...] = ()
USUAL = "autoencoder.pt"
BUFFERS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
MARKS = {"pre_bias", "latent_bias", "encoder.weight", "activation"}


def _file(listing: Listing) -> str | None:
    names = listing.matching(r"[^/]+\.pt")
    found = [n for n in names if "activation" in listing.keys(n) and len(listing.keys(n) & MARKS) >= 3]
    return found[0] if len(found) == 1 else USUAL if USUAL in found else None


def recognises(listing: Listing) -> bool:
    """A single `.pt` file of a folder whose keys are theirs."""
    return len(listing.matching(r"[^/]+\.pt")) <= 16 and _file(listing) is not None


def load(listing: Listing, options: dict[str, Any]) -> SAE:
    """Reads ReLU, Identity and TopK coders, tied or not; TopK normalises its rows, as their loader decides."""
    name = _file(listing)
    if name is None:
        bad(listing.path, None, "one .pt file with " + ", ".join(sorted(MARKS)), "none or several")
    arrays = listing.arrays(name)
    d, f = arrays.shape("pre_bias", "d")[0], arrays.shape("latent_bias", "f")[0]
    kind, k, postact = _activation(arrays, f)
    tied = "decoder.linear.weight" in arrays
    decoder = "decoder.linear.weight" if tied else "decoder.weight"
    arrays.only(("pre_bias", "latent_bias", "encoder.weight", decoder, *BUFFERS))
    for buffer, kinds in zip(BUFFERS, (("int64",), FLOATS, FLOATS), strict=True):
        arrays.take(buffer, (f,), kinds)  # statistics of training: held against their shape, not used
    W_enc = arrays.take("encoder.weight", (f, d))
    if tied:
        stored = arrays.take(decoder, (f, d))
        if not np.array_equal(stored, W_enc):
            bad(arrays.file, decoder, "a copy of encoder.weight (the decoder is tied)", "other numbers")
        W_dec = W_enc.copy()
    else:
        W_dec = transposed(arrays.take(decoder, (d, f)))
    found = {
        "W_enc": transposed(W_enc),
        "b_enc": arrays.take("latent_bias", (f,)),
        "W_dec": W_dec,
        "b_dec": arrays.take("pre_bias", (d,)),
    }
    selectors = {"ReLU": Relu(), "Identity": Linear(), "TopK": Rank(k or 1, rectify=postact == "ReLU")}
    return assemble(
        listing,
        found,
        encoder=affine(found, True),
        selector=selectors[kind],
        norm=RowNorm(1) if kind == "TopK" else NoNorm(),
        k=k,
        meta=provenance(NAME, kind),
    )


def _activation(arrays: Arrays, f: int) -> tuple[str, int | None, str | None]:
    values = Config(arrays.file, arrays.scalars)
    known = ("activation", "activation_state_dict", "activation.k", "activation.postact_fn")
    for key in values:
        if key not in known and not key.startswith("activation_state_dict."):
            values.fail(key, "only arrays and the activation's name", values[key])
    kind = values.choice("activation", ("ReLU", "Identity", "TopK"))
    if kind != "TopK":
        return kind, None, None
    k = values.integer("activation_state_dict.k", most=f)
    if values.integer("activation.k", k) != k:
        values.fail("activation.k", f"{k}, as in activation_state_dict", values["activation.k"])
    return kind, k, values.choice("activation_state_dict.postact_fn", ("ReLU", "Identity"), "ReLU")


def save(sae: SAE, path: Path, notes: Notes) -> None:
    """Writes `autoencoder.pt` (or the `.pt` file that `path` names)."""
    p = parts(sae, NAME, notes).fold_scaling()
    if isinstance(p.selector, Linear):
        name, state = "Identity", {}
    elif isinstance(p.selector, Rank) and isinstance(p.selector.rule, RowRule) and not p.selector.signed:
        p = p.unit_atoms() if p.selector.by_norm else p
        name, state = "TopK", {"k": p.k, "postact_fn": "ReLU" if p.selector.rectify else "Identity"}
    else:
        p.needs("relu")
        name, state = "ReLU", {}
    normed = isinstance(p.norm, RowNorm) and p.norm.ddof == 1 and p.norm.restore
    if normed and name != "TopK":
        refuse(NAME, f"{name} with layer-normalised rows (their loader normalises for TopK only)", ("sae_lens",))
    if name == "TopK" and isinstance(p.norm, NoNorm):
        refuse(NAME, "a top-k of rows as they are (their loader normalises them for TopK)", ABLE["topk"])
    (replace(p, norm=NoNorm()) if normed else p).needs_plain_rows()
    p = p.centred_by_b_dec()
    a = {n: v.astype(np.float32, copy=False) for n, v in p.arrays.items()}
    content = {
        "pre_bias": a["b_dec"],
        "latent_bias": a["b_enc"],
        "stats_last_nonzero": np.zeros(p.d_sae, np.int64),
        "latents_activation_frequency": np.ones(p.d_sae, np.float32),
        "latents_mean_square": np.zeros(p.d_sae, np.float32),
        "encoder.weight": transposed(a["W_enc"]),
        "decoder.weight": transposed(a["W_dec"]),
        "activation": name,
        "activation_state_dict": state,
    }
    file = path if os.path.splitext(path)[1] == ".pt" else path / USUAL
    write_with_notes(file, pt_bytes(content), NAME, sae, notes)
