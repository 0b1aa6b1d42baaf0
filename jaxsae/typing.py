"""Axis letters and array aliases: the legend for every signature in jaxsae.

    B  rows of a batch (after the view)      D  input width, `d_in`
    T  positions of a sequence               E  output width, `d_out`
    K  active latents of a row               S  dictionary size, `d_sae`
    L  sites                                 N  runs of a fleet
    R  levels (nested reconstructions)

The annotations are checked at run time only in tests (jaxtyping's import hook).
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from jaxtyping import Array, Bool, Float, Int

PyTree: TypeAlias = Any
Params: TypeAlias = dict[str, Array]
Batch: TypeAlias = Mapping[str, Array]

Inputs: TypeAlias = Float[Array, "B D"]
Targets: TypeAlias = Float[Array, "B E"]
RowMask: TypeAlias = Float[Array, " B"]
PerLatent: TypeAlias = Float[Array, " S"]
Atoms: TypeAlias = Float[Array, "S E"]
EncoderWeight: TypeAlias = Float[Array, "D S"]
DensePre: TypeAlias = Float[Array, "B S"]
CodeValues: TypeAlias = Float[Array, "B K"]
CodeIndices: TypeAlias = Int[Array, "B K"]
Scalar: TypeAlias = Float[Array, ""]
Flag: TypeAlias = Bool[Array, ""]
