"""Slot members in torch: one branch per member, with the arithmetic of its JAX twin.

`OPTIONS` lists every member that has a torch form with the options that form reads; a member, or an option, that is not
listed is refused rather than ignored.
"""

import math
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from jaxsae.errors import ConfigError
from jaxsae.sae import (
    SAE,
    Affine,
    Bias,
    Free,
    Gated,
    Linear,
    LinearSkip,
    NoNorm,
    PreSelect,
    Rank,
    Relu,
    RowLength,
    RowNorm,
    RowRule,
    TanhRelu,
    Threshold,
    Unit,
)
from jaxsae.sae.norms import EPS

SIZES = {"d_in", "d_sae", "d_out"}
# Where training begins: of no consequence here.
STARTS = {"start", "init_norm", "start_scale", "start_share", "start_above"}
OPTIONS: dict[str, dict[type, set[str]]] = {
    "norm": {NoNorm: set(), RowNorm: {"ddof", "restore"}, RowLength: {"restore"}},
    "encoder": {Affine: {"b_pre"}, Gated: {"b_pre"}},
    "selector": {
        Relu: set(),
        Linear: set(),
        TanhRelu: set(),
        Threshold: {"signed", "rectify"},
        Rank: {"cap", "rule", "signed", "by_norm", "rectify"},
    },
    "rule": {RowRule: set()},
    "dictionary": {Free: set(), Unit: set()},
    "readout": {Bias: set(), LinearSkip: {"raw"}},
}


def check_slots(sae: SAE) -> None:
    """Refuses slots that have no torch form.

    Raises:
        ConfigError: naming the slot, its member, and the members that have one.
    """
    encode: Any = sae.encoder
    found = {"norm": sae.norm, "dictionary": sae.dictionary, "readout": sae.readout, "encoder": encode}
    if isinstance(encode, PreSelect):
        found |= {"encoder": encode.encoder, "selector": encode.selector}
        if isinstance(encode.selector, Rank):
            found["rule"] = encode.selector.rule
    for slot, member in found.items():
        known = OPTIONS[slot].get(type(member))
        options = {f.name for f in fields(member)} - SIZES - STARTS - (known or set())
        if known is None or options:
            names = ", ".join(c.__name__ for c in OPTIONS[slot])
            what = f"option {min(options)!r} of the {slot}" if known is not None else f"the {slot}"
            raise ConfigError(f"{what} {type(member).__name__} has no torch form; those that have: {names}")
    if sae.rows.inputs or sae.rows.outputs:
        raise ConfigError(f"rows of shape {sae.rows.inputs or sae.rows.outputs} have no torch form; vectors have")


def scaled(norm: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """The rows as the encoder sees them, and (factor, shift) that give an output its scale back."""
    wide = x.float() if x.dtype.itemsize < 4 else x
    if isinstance(norm, RowNorm):
        mean = wide.mean(-1, keepdim=True)
        std = wide.std(-1, keepdim=True, correction=norm.ddof)
        return ((wide - mean) / (std + EPS)).to(x.dtype), (std, mean)
    if isinstance(norm, RowLength):
        length = wide.norm(dim=-1, keepdim=True)
        factor = torch.where(length > 0, math.sqrt(x.shape[-1]) / torch.where(length > 0, length, 1), 1)
        return (wide * factor).to(x.dtype), (1 / factor, torch.zeros_like(factor))
    return x, None


def pre_activations(module: nn.Module, encoder: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """(score [..., S], value [..., S]) of scaled rows."""
    p = dict(module.named_parameters())
    q = (x - p["b_dec"] if encoder.b_pre == "b_dec" else x) @ p["W_enc"]
    if isinstance(encoder, Gated):
        return q + p["b_gate"], q * p["r_mag"].exp() + p["b_mag"]
    q = q + p["b_enc"]
    return q, q


def selected(module: nn.Module, selector: Any, score: Tensor, value: Tensor) -> Tensor:
    """Dense codes [..., S]."""
    if isinstance(selector, Linear):
        return value
    if isinstance(selector, (Relu, TanhRelu)):
        value = torch.where(score > 0, value.relu(), 0)
        return value.tanh() if isinstance(selector, TanhRelu) else value
    score = score.detach().abs() if selector.signed else score.detach()
    value = value.relu() if selector.rectify and not selector.signed else value
    if isinstance(selector, Threshold):
        return torch.where(score > module.get_buffer("threshold"), value, 0)
    if selector.by_norm:
        score = score * module.get_parameter("W_dec").detach().float().norm(dim=-1)
    keep = best(score, min(int(module.get_buffer("k")), selector.cap))
    return torch.where(keep & (score > 0) if selector.rectify else keep, value, 0)


def best(score: Tensor, k: int) -> Tensor:
    """Mask of the k largest entries of each row, ties by lowest index (`torch.topk` leaves ties open)."""
    lowest = score.topk(k, dim=-1).values[..., -1:]
    above, level = score > lowest, score == lowest
    free = k - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= free))


def readout(module: nn.Module, member: Any, raw: Tensor | None, inner: Tensor | None) -> Tensor:
    """What is added to the decoded codes: the bias and, where the rows are known, a linear skip."""
    x = raw if getattr(member, "raw", False) else inner
    bias = module.get_parameter("b_dec")
    return bias if x is None or not isinstance(member, LinearSkip) else x @ module.get_parameter("W_skip") + bias
