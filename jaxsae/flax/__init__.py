"""Bridge to Flax: a dictionary inside an NNX or a linen model, trained, sharded or frozen with it.

module = to_nnx(sae);  module(x);  from_nnx(module)                 parameters are nnx.Param under the SAE's names
module, variables = to_linen(sae);  module.apply(variables, x)      variables["params"]["W_enc"], ...
spliced = splice_nnx(model, "blocks/1/mlp", sae)                    a copy of the model with the SAE at that site
spliced, variables = splice_linen(model, variables, "block_1/mlp", sae)
"""

from jaxsae.flax.linen import LinenSAE, LinenSpliced, from_linen, splice_linen, to_linen
from jaxsae.flax.nnx import Constant, NnxSAE, NnxSpliced, from_nnx, splice_nnx, to_nnx
from jaxsae.flax.site import reconstruct

__all__ = [
    "Constant",
    "LinenSAE",
    "LinenSpliced",
    "NnxSAE",
    "NnxSpliced",
    "from_linen",
    "from_nnx",
    "reconstruct",
    "splice_linen",
    "splice_nnx",
    "to_linen",
    "to_nnx",
]
