"""How parameters move: optimiser descriptions and the precision policy."""

from jaxsae.optim.adam import Adam, Optimizer
from jaxsae.optim.precision import Precision

__all__ = ["Adam", "Optimizer", "Precision"]
