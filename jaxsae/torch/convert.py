"""From a torch module to `SAE`: what its attributes leave open is found by trying.

Import it through `jaxsae.torch`, which explains an absent torch.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from jaxsae.errors import ConfigError
from jaxsae.sae import SAE, Meta, NoNorm, RowNorm, make_sae
from jaxsae.torch.module import SaeModule
from jaxsae.typing import Params

#: Lengths of the random rows a module is tried on: activations of different models differ by such factors.
PROBE_NORMS = (1.0, 10.0, 100.0, 1000.0)
NEEDED = ("W_enc", "b_enc", "W_dec", "b_dec")


def read_module(module: Any, sample: Tensor | None, meta: Meta | None) -> SAE:
    """See `jaxsae.torch.from_module`."""
    if isinstance(module, SaeModule):
        params = {name: array_of(t) for name, t in module.state_dict().items()}
        return replace(module.template, params=params, meta=meta or module.template.meta)
    missing = [n for n in NEEDED if not isinstance(getattr(module, n, None), Tensor)]
    if missing:
        raise ConfigError(
            f"from_module: expected tensors {', '.join(NEEDED)} on the module, found no {missing[0]!r} on "
            f"{type(module).__name__}; load the weights into a module of that form"
        )
    params = {n: array_of(getattr(module, n)) for n in NEEDED}
    x = _probe(module) if sample is None else sample.to(module.W_enc)
    with torch.no_grad():
        codes = module.encode(x)
        wanted = array_of(codes), array_of(module.decode(codes))
    if not jnp.any(wanted[0]):
        raise ConfigError("from_module: encode gives no codes on the rows tried; pass sample=activations [B, d_in]")
    rows = array_of(x)
    for sae in _candidates(module, params, meta or _meta_of(module)):
        if _agrees(sae, rows, *wanted):
            return sae
    raise ConfigError(
        f"from_module: encode and decode of {type(module).__name__} are not an affine map with ReLU, threshold or "
        "k best, with or without subtracting b_dec and standardising rows; save it in a format jaxsae.load knows"
    )


def array_of(tensor: Tensor) -> jax.Array:
    """A copy of a tensor that JAX owns."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return jnp.array(tensor.view(torch.int16).numpy().view(jnp.bfloat16))
    return jnp.array(tensor.numpy())


def _candidates(module: Any, params: Params, meta: Meta) -> Iterator[SAE]:
    """Dictionaries these attributes could mean, the plainest first."""
    cfg = getattr(module, "cfg", None)
    k, threshold = getattr(module, "k", getattr(cfg, "k", None)), getattr(module, "threshold", None)
    plain: dict[str, Any] = {}
    selections = [plain]
    if threshold is not None:
        level = array_of(torch.as_tensor(threshold)).astype(params["b_enc"].dtype)
        selections.insert(0, {"threshold": jnp.broadcast_to(level, params["b_enc"].shape)})
    if k is not None:
        options = [{"k": int(k)}, {"k": int(k), "by_norm": True}, {"k": int(k), "signed": True}]
        selections[:0] = options
    for norm in (NoNorm(), RowNorm()):
        for subtract in (False, True):
            for how in selections:
                how = dict(how)
                extra = {"threshold": how.pop("threshold")} if "threshold" in how else {}
                yield make_sae({**params, **extra}, norm=norm, subtract_b_dec=subtract, meta=meta, **how)


def _agrees(sae: SAE, rows: jax.Array, codes: jax.Array, y: jax.Array) -> bool:
    """Equal codes (up to rounding, and up to the entries that rounding moves over a threshold) and outputs."""
    narrow = jnp.finfo(sae.dtype).bits < 32
    tolerance = 3e-2 if narrow else 1e-4

    def close(found: jax.Array, wanted: jax.Array) -> bool:
        a, b = np.asarray(found, np.float32), np.asarray(wanted, np.float32)
        scale = np.abs(b).max(-1, keepdims=True)
        share = np.mean(np.abs(a - b) <= tolerance * scale + 1e-30)
        return a.shape == b.shape and bool(share == 1.0 or (narrow and share > 0.999))

    mine = sae.encode(rows)
    return close(mine.dense(), codes) and close(sae.decode(mine, like=rows), y)


def _probe(module: Any) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4 * len(PROBE_NORMS), module.W_enc.shape[0], generator=draw)
    x = x / x.norm(dim=-1, keepdim=True) * torch.tensor(PROBE_NORMS).repeat_interleave(4)[:, None]
    bias = module.b_dec.detach().cpu().float()
    return (x + bias if bias.shape == x.shape[-1:] else x).to(module.W_enc)


def _meta_of(module: Any) -> Meta:
    cfg = getattr(module, "cfg", None)
    nested = getattr(cfg, "metadata", None)
    read = lambda name: str(getattr(cfg, name, None) or getattr(nested, name, None) or "")  # noqa: E731
    return Meta(host=read("model_name"), site=read("hook_name"))
