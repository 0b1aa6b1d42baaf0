"""How parameters move: optimiser descriptions and the precision policy."""

from jaxsae.optim.adam import Adam, Optimizer
from jaxsae.optim.adam_bf16 import AdamBf16, halved
from jaxsae.optim.precision import Precision

__all__ = ["Adam", "AdamBf16", "Optimizer", "Precision", "halved"]
