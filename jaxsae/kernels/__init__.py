"""Arrays to arrays: the few operations that carry the training step, one folder per op."""

from jaxsae.kernels._dispatch import using
from jaxsae.kernels.adam.api import adam
from jaxsae.kernels.decode_residual_sddmm.api import decode_residual_sddmm
from jaxsae.kernels.encode_topk.api import encode_topk
from jaxsae.kernels.entries import add_at, pick, take
from jaxsae.kernels.keep_best.api import keep_best, keep_best_of_columns
from jaxsae.kernels.nested.api import nested
from jaxsae.kernels.path.api import path
from jaxsae.kernels.sparse_adam.api import sparse_adam
from jaxsae.kernels.sparse_decode.api import sparse_decode
from jaxsae.kernels.sparse_grad.api import sparse_grad
from jaxsae.kernels.topk.api import topk
from jaxsae.kernels.topk.approx import approx_topk
from jaxsae.kernels.topk_mask.api import topk_mask

__all__ = [
    "adam",
    "add_at",
    "approx_topk",
    "decode_residual_sddmm",
    "encode_topk",
    "keep_best",
    "keep_best_of_columns",
    "nested",
    "path",
    "pick",
    "sparse_adam",
    "sparse_decode",
    "sparse_grad",
    "take",
    "topk",
    "topk_mask",
    "using",
]
