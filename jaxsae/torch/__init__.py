"""Bridge to PyTorch (extra `torch`): dictionaries both ways, activations without a copy.

`import jaxsae.torch` does not import torch; each function does, and says how to install it where it is absent.
"""

from typing import TYPE_CHECKING, Any

import jax

from jaxsae.errors import ConfigError
from jaxsae.sae import SAE, Meta

if TYPE_CHECKING:
    import torch

    from jaxsae.torch.module import SaeModule


def to_module(
    sae: SAE, dtype: "torch.dtype | str | None" = None, device: "torch.device | str | None" = None
) -> "SaeModule":
    """The same dictionary as a torch module: encode, decode, forward, and parameters under the same names.

    It has the attributes that SAEBench asks of a custom SAE (`W_enc`, `W_dec`, `b_enc`, `b_dec`, `cfg`, `dtype`,
    `device`), trains under torch autograd, and computes what `sae` computes, ties included.

    Args:
        sae: any dictionary made of the plain slots (affine encoder; ReLU, threshold or k best; free atoms; bias).
        dtype: of the module; None for that of `sae`.
        device: None for the CPU.

    Returns:
        A `jaxsae.torch.module.SaeModule`.

    Raises:
        ConfigError: torch is absent, or a slot has no torch form; the message names it.

    Example:
        >>> module = to_module(sae, device="cuda")      # doctest: +SKIP
        >>> codes = module.encode(x)                    # doctest: +SKIP
    """
    _torch()
    from jaxsae.torch.module import build

    return build(sae, dtype, device)


def from_module(module: Any, sample: "torch.Tensor | None" = None, meta: Meta | None = None) -> SAE:
    """The dictionary a torch module computes.

    Our own modules carry their slots and come back exactly.  Of any other module that has `W_enc` [D, S], `b_enc`,
    `W_dec` [S, E], `b_dec` and maybe `threshold` or `k`, the attributes do not say what it computes (is b_dec
    subtracted? are rows standardised?), so the combinations are tried against its own encode and decode.

    Args:
        module: the module; it is only called, never changed.
        sample: rows [B, D] to try them on; None for random rows of several sizes around b_dec.
        meta: provenance; None for what the module says itself.

    Raises:
        ConfigError: torch is absent, an attribute is missing, or the module computes something else.
    """
    _torch()
    from jaxsae.torch.convert import read_module

    return read_module(module, sample, meta)


def to_torch(array: jax.Array) -> "torch.Tensor":
    """The same memory as a torch tensor, on the same device.

    JAX takes its arrays for immutable: clone the tensor before writing to it.

    Raises:
        ConfigError: torch is absent, the array is spread over several devices, or torch cannot hold its dtype.

    Example:
        >>> x = to_torch(jax.numpy.ones((2, 3)))        # doctest: +SKIP
    """
    torch = _torch()
    if len(array.devices()) > 1:
        raise ConfigError(
            f"to_torch: expected an array on one device, found one on {len(array.devices())}; "
            "gather it first with jax.device_put(array, device)"
        )
    try:
        return torch.from_dlpack(array)
    except (RuntimeError, BufferError, TypeError, ValueError) as e:
        raise ConfigError(f"to_torch: {array.dtype}{list(array.shape)} cannot be shared with torch: {_line(e)}") from e


def from_torch(tensor: "torch.Tensor") -> jax.Array:
    """The same memory as a JAX array, on the same device; gradients do not pass.

    JAX takes the array for immutable: do not write to the tensor while the array lives.  Copied after all: a tensor
    that is not contiguous, one whose address is not aligned as XLA asks, and 64-bit numbers, which become 32-bit
    unless `jax_enable_x64` is set.

    Raises:
        ConfigError: torch is absent, or JAX cannot hold the dtype.
    """
    _torch()
    try:
        return jax.dlpack.from_dlpack(tensor.detach().contiguous())
    except (RuntimeError, BufferError, TypeError, ValueError) as e:
        raise ConfigError(f"from_torch: {tensor.dtype}{list(tensor.shape)} cannot be shared: {_line(e)}") from e


def _torch() -> Any:
    try:
        import torch
    except ImportError as e:
        raise ConfigError('PyTorch is not installed; install it with: pip install "jaxsae[torch]"') from e
    return torch


def _line(e: BaseException) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]


__all__ = ["from_module", "from_torch", "to_module", "to_torch"]
