"""EleutherAI sparsify: a folder per hook point with `cfg.json` and `sae.safetensors`."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxsae.io.formats._base import Notes
from jaxsae.io.formats._build import affine, assemble, provenance
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._parts import Parts, parts
from jaxsae.io.formats._safetensors import chunks
from jaxsae.io.formats._weights import transposed
from jaxsae.io.formats._write import as_json, write_files
from jaxsae.sae import SAE, GroupMax, Rank, Relu

NAME = "sparsify"
TITLE = "EleutherAI sparsify folder"
OPTIONS: tuple[str, ...] = ()
CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def recognises(listing: Listing) -> bool:
    """Both file names, and not our own description beside them."""
    return CONFIG in listing and WEIGHTS in listing and "sae.json" not in listing


def load(listing: Listing, options: dict[str, Any]) -> SAE:
    """Reads a top-k or group-max coder, transcoder or skip transcoder.

    A top-k of all latents is a ReLU.  The atoms are taken as they are: `normalize_decoder` is a rule of training, and
    `multi_topk` a loss.
    """
    config, arrays = listing.config(CONFIG), listing.arrays(WEIGHTS)
    d = config.integer("d_in")
    f = config.integer("num_latents", 0, least=0) or d * config.integer("expansion_factor", 32)
    skip = config.flag("skip_connection", False)
    arrays.only(["encoder.weight", "encoder.bias", "W_dec", "b_dec"] + ["W_skip"] * skip)
    found = {
        "W_enc": transposed(arrays.take("encoder.weight", (f, d))),
        "b_enc": arrays.take("encoder.bias", (f,)),
        "W_dec": arrays.take("W_dec", (f, d)),
        "b_dec": arrays.take("b_dec", (d,)),
    }
    if skip:
        found["W_skip"] = transposed(arrays.take("W_skip", (d, d)))
    kind = config.choice("activation", ("topk", "groupmax"), "topk")
    k = config.integer("k", 32, most=f)
    if config.flag("signed", False):
        config.fail("signed", "false (a signed top-k was never released)", True)
    if kind == "groupmax" and f % k:
        config.fail("k", f"a divisor of the {f} latents, as groupmax needs", k)
    transcode = config.flag("transcode", False)
    meta = provenance(NAME, "transcoder" if transcode else kind, config=config)
    selector: Any = GroupMax(k) if kind == "groupmax" else Relu() if k == f else Rank(k)
    encoder = affine(found, not transcode)
    ranked = k if isinstance(selector, Rank) else None
    return assemble(listing, found, encoder=encoder, selector=selector, k=ranked, meta=meta)


def save(sae: SAE, path: Path, notes: Notes) -> None:
    """Writes `cfg.json` and `sae.safetensors`; a ReLU becomes the top-k of all latents."""
    p = parts(sae, NAME, notes).fold_scaling()
    p.needs_plain_rows(skip=True)
    config, p = _selection(p, notes)
    config |= {
        "expansion_factor": 32,
        "normalize_decoder": False,
        "num_latents": p.d_sae,
        "multi_topk": False,
        "skip_connection": p.skip,
        "transcode": not p.centred,
        "d_in": p.d_in,
        "jaxsae": {"folded": [*sae.meta.get("folded", ()), *notes.all]},
    }
    arrays = {
        "encoder.weight": transposed(p.arrays["W_enc"]),
        "encoder.bias": p.arrays["b_enc"],
        "W_dec": p.arrays["W_dec"],
        "b_dec": p.arrays["b_dec"],
    }
    if p.skip:
        arrays["W_skip"] = transposed(p.arrays["W_skip"])
    if len({a.dtype for a in arrays.values()}) > 1:
        arrays = {n: a.astype(np.float32) for n, a in arrays.items()}
    write_files(path, {WEIGHTS: chunks(arrays), CONFIG: as_json(config)})


def _selection(p: Parts, notes: Notes) -> tuple[dict[str, Any], Parts]:
    if isinstance(p.selector, GroupMax):
        return {"activation": "groupmax", "k": p.selector.groups}, p
    if p.needs("topk", "relu") == "relu":
        notes("ReLU written as the top-k of all latents, k = d_sae")
        return {"activation": "topk", "k": p.d_sae}, p
    return {"activation": "topk", "k": p.k}, p.unit_atoms() if p.selector.by_norm else p
