"""The torch twin of `SAE`.  Import it through `jaxsae.torch`, which explains an absent torch."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor, nn

from jaxsae.errors import ConfigError
from jaxsae.sae import SAE, Gated, Rank, RowLength, RowNorm, Threshold
from jaxsae.torch.members import check_slots, pre_activations, readout, scaled, selected


@dataclass
class Config:
    """What SAEBench and SAELens read from `sae.cfg`.  Filled from `sae.meta`; set by hand what it does not know."""

    model_name: str = ""
    d_in: int = 0
    d_sae: int = 0
    d_out: int = 0
    hook_layer: int | None = None
    hook_name: str = ""
    hook_head_index: int | None = None
    context_size: int | None = None
    architecture: str = ""
    k: int | None = None
    activation_fn_str: str = ""
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    apply_b_dec_to_input: bool = False
    normalize_activations: str = "none"
    finetuning_scaling_factor: bool = False
    dtype: str = ""
    device: str = ""
    prepend_bos: bool = True
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple = (None,)
    training_tokens: int = 0
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    @property
    def architecture_str(self) -> str:
        """Another name for `architecture`."""
        return self.architecture

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


class SaeModule(nn.Module):
    """A sparse autoencoder in torch.

        codes = select((norm(x) [- b_dec]) @ W_enc + b_enc)        y = undo(codes @ W_dec + b_dec)

    Parameters: W_enc [D, S], b_enc [S], W_dec [S, E], b_dec [E] (and those of a gate or a skip, under the SAE's
    names).  Buffers, which no gradient reaches: threshold [S] or k [].  `template` holds the slots, so that
    `jaxsae.torch.from_module` gives the same dictionary back.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __init__(self, template: SAE, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        check_slots(template)
        self.template = template
        fixed = {*template.encoder.fixed, *template.dictionary.fixed, *template.norm.fixed}
        for name, tensor in tensors.items():
            if name in fixed or not tensor.is_floating_point():
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, nn.Parameter(tensor))
        self._last: tuple[Tensor, Tensor] | None = None
        self.cfg = config_of(template)
        self._refresh()

    # ------------------------------------------------------------------------------------------ what it computes
    def encode(self, x: Tensor) -> Tensor:
        """Dense codes [..., S] of raw rows x [..., D], 0 where a latent is off.

        Raises:
            ConfigError: the last axis is not d_in.
        """
        if x.shape[-1] != self.cfg.d_in:
            raise ConfigError(f"this dictionary reads vectors of width {self.cfg.d_in}, found {tuple(x.shape)}")
        inner, undo = scaled(self.template.norm, x.to(self.dtype))
        self._last = undo and (undo[0].detach(), undo[1].detach())
        slot: Any = self.template.encoder
        return selected(self, slot.selector, *pre_activations(self, slot.encoder, inner))

    def decode(self, codes: Tensor, like: Tensor | None = None) -> Tensor:
        """The reconstruction [..., E] of codes [..., S].

        Args:
            codes: what `encode` returned, edited or not.
            like: the raw rows x [..., D], needed to undo a scaling of each row and to add a linear skip.  Without
                them the skip is left out and the scaling of the last `encode` is undone, as a constant, which is what
                SAEBench and SAELens expect of decode(encode(x)).

        Raises:
            ConfigError: rows are needed, and the last `encode` saw another leading shape.
        """
        x = None if like is None else like.to(self.dtype)
        inner, undo = (None, self._last) if x is None else scaled(self.template.norm, x)
        y = codes.to(self.dtype) @ self.W_dec + readout(self, self.template.readout, x, inner)
        if not getattr(self.template.norm, "restore", False):
            return y
        if undo is None or undo[0].shape[:-1] != codes.shape[:-1]:
            seen = "none" if undo is None else f"rows of leading shape {tuple(undo[0].shape[:-1])}"
            raise ConfigError(
                f"decode: this dictionary scales each row; expected the rows of codes {tuple(codes.shape)}, found "
                f"{seen}; pass like=x"
            )
        return (y * undo[0] + undo[1]).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The full reconstruction [..., E] of raw rows [..., D]."""
        return self.decode(self.encode(x), like=x)

    # ------------------------------------------------------------------------------------------ housekeeping
    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return self.W_dec.device

    def _apply(self, *args: Any, **kwargs: Any) -> "SaeModule":
        super()._apply(*args, **kwargs)
        self._last = None
        self._refresh()
        return self

    def _refresh(self) -> None:
        self.cfg.dtype, self.cfg.device = str(self.dtype).removeprefix("torch."), str(self.device)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}


def build(sae: SAE, dtype: torch.dtype | str | None, device: torch.device | str | None) -> SaeModule:
    """See `jaxsae.torch.to_module`."""
    if isinstance(dtype, str):
        wanted = getattr(torch, dtype.removeprefix("torch."), None)
        if not isinstance(wanted, torch.dtype):
            raise ConfigError(f"to_module: expected a dtype such as 'bfloat16', found {dtype!r}")
        dtype = wanted
    check_slots(sae)
    module = SaeModule(replace(sae, params={}), {name: tensor_of(a) for name, a in sae.params.items()})
    if "k" in sae.params:
        module.cfg.k = int(sae.params["k"])
        module.cfg.activation_fn_kwargs = {"k": module.cfg.k}
    return module.to(device=device, dtype=dtype)


def tensor_of(array: jax.Array) -> Tensor:
    """A copy of an array, sharded or not, in memory of the CPU that torch owns."""
    host = np.array(array)
    if host.dtype == jax.numpy.bfloat16:  # a type of ml_dtypes, which torch cannot read from numpy
        return torch.from_numpy(host.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(host)


def config_of(sae: SAE) -> Config:
    """The `cfg` of a dictionary, without dtype and device."""
    slot: Any = sae.encoder
    ranked = isinstance(slot.selector, Rank)
    name = "gated" if isinstance(slot.encoder, Gated) else "standard"
    name = "jumprelu" if isinstance(slot.selector, Threshold) else name
    name = ("abstopk" if slot.selector.signed else "topk") if ranked else name
    layer = re.match(r"blocks\.(\d+)\.", sae.meta.site)
    own = {f.name for f in fields(Config)}
    cfg = Config(**{n: v for n, v in sae.meta.extra if n in own and v is not None})
    cfg.model_name, cfg.hook_name = sae.meta.host or cfg.model_name, sae.meta.site or cfg.hook_name
    cfg.hook_layer = int(layer[1]) if layer else cfg.hook_layer
    cfg.d_in, cfg.d_sae, cfg.d_out = sae.d_in, sae.d_sae, sae.d_out
    cfg.architecture, cfg.activation_fn_str = name, "topk" if ranked else "relu"
    cfg.apply_b_dec_to_input = slot.encoder.b_pre == "b_dec"
    scalings = {RowNorm: "layer_norm", RowLength: "constant_norm_rescale"}
    cfg.normalize_activations = scalings.get(type(sae.norm), "none")
    return cfg
