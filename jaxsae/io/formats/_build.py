"""From arrays of a file to an SAE: the last step of every reader."""

import json
from typing import Any, Literal

import numpy as np

from jaxsae.errors import ConfigError, FormatError
from jaxsae.io.formats._base import Config
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._weights import inverse, row_norms, scale_columns, scale_rows, widened
from jaxsae.sae import SAE, Affine, Bias, Free, LinearSkip, Meta, NoNorm, PreSelect, RowShape, check_shapes

Centring = Literal["none", "b_dec"]


def affine(arrays: dict[str, np.ndarray], subtract_b_dec: bool) -> Affine:
    """The plain encoder of W_enc [D, S]."""
    d_in, d_sae = arrays["W_enc"].shape
    return Affine(d_in, d_sae, centring(subtract_b_dec), start_for(arrays))


def centring(subtract_b_dec: bool) -> Centring:
    """The encoder's `b_pre`."""
    return "b_dec" if subtract_b_dec else "none"


def start_for(arrays: dict[str, np.ndarray]) -> Literal["tied", "random"]:
    """Where a fresh coder of these sizes may begin: tied needs equal widths."""
    return "tied" if arrays["W_enc"].shape[0] == arrays["W_dec"].shape[1] else "random"


def assemble(
    listing: Listing,
    arrays: dict[str, np.ndarray],
    *,
    encoder: Any,
    selector: Any = None,
    dictionary: Any = None,
    readout: Any = None,
    norm: Any = NoNorm(),
    rows: RowShape = RowShape(),
    meta: Meta = Meta(),
    k: float | None = None,
) -> SAE:
    """An SAE from arrays and slot members; the plain members are filled in.

    Args:
        listing: where the arrays came from, for messages.
        arrays: by our names, in our orientation.
        encoder: an Encoder (then with a selector) or an Encode.
        selector: its Selector.
        dictionary: default: `Free`, of W_dec's shape.
        readout: default: `Bias`, or `LinearSkip` where there is a W_skip.
        norm: input scaling.
        rows: axes of a row.
        meta: provenance.
        k: latents per row, where the selector ranks.

    Raises:
        FormatError: arrays whose shapes do not belong together.
    """
    dictionary = dictionary or Free(*arrays["W_dec"].shape)
    if readout is None:
        skip = "W_skip" in arrays
        readout = LinearSkip(encoder.d_in, dictionary.d_out) if skip else Bias(dictionary.d_out)
    params: dict[str, Any] = dict(arrays)
    if k is not None:
        params["k"] = np.asarray(k, np.int32 if float(k).is_integer() else np.float32)
    encode = encoder if selector is None else PreSelect(encoder, selector)
    sae = SAE(params, norm, encode, dictionary, readout, meta, rows)
    try:
        check_shapes(sae)
    except ConfigError as e:
        raise FormatError(f"{str(listing.path)!r}: {e}") from e
    return sae


def provenance(
    format: str,
    architecture: str,
    *,
    config: Config | None = None,
    host: str | None = None,
    site: str | None = None,
    folded: tuple[str, ...] = (),
    **extra: Any,
) -> Meta:
    """Meta of a dictionary that was read: where from, and what reading folded into the weights."""
    if config is not None:
        extra["source_config"] = json.dumps(dict(config), sort_keys=True)
    if folded:
        extra["folded"] = tuple(folded)
    extra = {n: v for n, v in extra.items() if v is not None}
    return Meta(host=host or "", site=site or "").with_extra(source_format=format, architecture=architecture, **extra)


def fold_decoder_norm(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Latents in units of the decoder's norm: W_enc, b_enc (and gate biases) times n_i, atoms divided by it."""
    arrays = widened(arrays)
    n = row_norms(arrays["W_dec"])
    scale_columns(arrays["W_enc"], n)
    scale_rows(arrays["W_dec"], inverse(n))
    for name in ("b_enc", "b_gate", "b_mag", "threshold"):
        if name in arrays:
            arrays[name] = (arrays[name] * n).astype(arrays[name].dtype)
    return arrays
