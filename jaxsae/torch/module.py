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
from jaxsae.sae import SAE, Affine, Bias, Free, NoNorm, PreSelect, Rank, Relu, RowNorm, RowRule, Threshold, Unit
from jaxsae.sae.norms import EPS


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

    Parameters: W_enc [D, S], b_enc [S], W_dec [S, E], b_dec [E].  Buffers, which no gradient reaches: threshold [S]
    or k [].  `template` holds the slots, so that `jaxsae.torch.from_module` gives the same dictionary back.
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
        x = x.to(self.dtype)
        if isinstance(self.template.norm, RowNorm):
            mean, std = self._moments(x)
            self._last = mean.detach(), std.detach()
            x = (x - mean) / (std + EPS)
        if self.template.encoder.encoder.b_pre == "b_dec":  # type: ignore[attr-defined]
            x = x - self.b_dec
        return self._select(x @ self.W_enc + self.b_enc)

    def decode(self, codes: Tensor, like: Tensor | None = None) -> Tensor:
        """The reconstruction [..., E] of codes [..., S].

        Args:
            codes: what `encode` returned, edited or not.
            like: the raw rows x [..., D], needed to undo a standardisation of each row.  Without them those of the
                last `encode` are used, as constants, which is what SAEBench expects of decode(encode(x)).

        Raises:
            ConfigError: rows are needed, and the last `encode` saw another leading shape.
        """
        y = codes @ self.W_dec + self.b_dec
        if not isinstance(self.template.norm, RowNorm):
            return y
        moments = self._last if like is None else self._moments(like.to(self.dtype))
        if moments is None or moments[0].shape[:-1] != codes.shape[:-1]:
            seen = "none" if moments is None else f"rows of leading shape {tuple(moments[0].shape[:-1])}"
            raise ConfigError(
                f"decode: this dictionary standardises each row; expected the rows of codes {tuple(codes.shape)}, "
                f"found {seen}; pass like=x"
            )
        return y * moments[1] + moments[0]

    def forward(self, x: Tensor) -> Tensor:
        """The full reconstruction [..., E] of raw rows [..., D]."""
        return self.decode(self.encode(x), like=x)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.float() if x.dtype.itemsize < 4 else x
        mean = x.mean(-1, keepdim=True)
        std = x.std(-1, keepdim=True, correction=self.template.norm.ddof)  # type: ignore[attr-defined]
        return mean.to(self.dtype), std.to(self.dtype)

    def _select(self, pre: Tensor) -> Tensor:
        selector: Any = self.template.encoder.selector  # type: ignore[attr-defined]
        signed = getattr(selector, "signed", False)
        value = pre if signed else pre.relu()
        score = pre.detach().abs() if signed else pre.detach()
        if isinstance(selector, Relu):
            return value
        if isinstance(selector, Threshold):
            return torch.where(score > self.get_buffer("threshold"), value, 0)
        if selector.by_norm:
            score = score * self.W_dec.detach().float().norm(dim=-1)
        k = min(int(self.get_buffer("k")), selector.cap)
        return torch.where(_best(score, k) & (score > 0), value, 0)

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


def _best(score: Tensor, k: int) -> Tensor:
    """Mask of the k largest entries of each row, ties by lowest index (`torch.topk` leaves ties open)."""
    lowest = score.topk(k, dim=-1).values[..., -1:]
    above, level = score > lowest, score == lowest
    free = k - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= free))


def check_slots(sae: SAE) -> None:
    """Refuses slots that have no torch form.

    Raises:
        ConfigError: naming the slot, its member, and the members that have one.
    """
    encode: Any = sae.encoder
    plain = isinstance(encode, PreSelect)
    found: dict[str, tuple[Any, tuple[type, ...]]] = {
        "norm": (sae.norm, (NoNorm, RowNorm)),
        "encoder": (encode.encoder if plain else encode, (Affine,)),
        "selector": (encode.selector if plain else encode, (Relu, Threshold, Rank)),
        "dictionary": (sae.dictionary, (Free, Unit)),
        "readout": (sae.readout, (Bias,)),
    }
    if plain and isinstance(encode.selector, Rank):
        found["rule"] = (encode.selector.rule, (RowRule,))
    for slot, (member, known) in found.items():
        if type(member) not in known:
            names = ", ".join(c.__name__ for c in known)
            raise ConfigError(f"the {slot} {type(member).__name__} has no torch form; those that have: {names}")


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
    selector: Any = sae.encoder.selector  # type: ignore[attr-defined]
    ranked = isinstance(selector, Rank)
    name = "standard" if isinstance(selector, Relu) else "jumprelu"
    name = ("abstopk" if selector.signed else "topk") if ranked else name
    layer = re.match(r"blocks\.(\d+)\.", sae.meta.site)
    own = {f.name for f in fields(Config)}
    cfg = Config(**{n: v for n, v in sae.meta.extra if n in own and v is not None})
    cfg.model_name, cfg.hook_name = sae.meta.host or cfg.model_name, sae.meta.site or cfg.hook_name
    cfg.hook_layer = int(layer[1]) if layer else cfg.hook_layer
    cfg.d_in, cfg.d_sae, cfg.d_out = sae.d_in, sae.d_sae, sae.d_out
    cfg.architecture, cfg.activation_fn_str = name, "topk" if ranked else "relu"
    cfg.apply_b_dec_to_input = sae.encoder.encoder.b_pre == "b_dec"  # type: ignore[attr-defined]
    cfg.normalize_activations = "layer_norm" if isinstance(sae.norm, RowNorm) else "none"
    return cfg
