"""What a sparse autoencoder is: the slots, their plain members, and the frozen object."""

from jaxsae.sae.codes import Codes, DenseCodes, SparseCodes
from jaxsae.sae.dictionaries import Free, Unit
from jaxsae.sae.encode import PreSelect
from jaxsae.sae.encoders import Affine
from jaxsae.sae.levels import One
from jaxsae.sae.norms import DatasetNorm, NoNorm, RowNorm
from jaxsae.sae.readout import Bias
from jaxsae.sae.records import Ctx, Out, Pre, Rows, Selection, Want
from jaxsae.sae.rules import RowRule
from jaxsae.sae.sae import SAE, Meta, check_shapes, freeze, make_sae
from jaxsae.sae.selectors import Rank, Relu, Threshold
from jaxsae.sae.trackers import EmaThreshold, Fired, threshold_value
from jaxsae.sae.views import Identity

__all__ = [
    "SAE",
    "Affine",
    "Bias",
    "Codes",
    "Ctx",
    "DatasetNorm",
    "DenseCodes",
    "EmaThreshold",
    "Fired",
    "Free",
    "Identity",
    "Meta",
    "NoNorm",
    "One",
    "Out",
    "Pre",
    "PreSelect",
    "Rank",
    "Relu",
    "RowNorm",
    "RowRule",
    "Rows",
    "Selection",
    "SparseCodes",
    "Threshold",
    "Unit",
    "Want",
    "check_shapes",
    "freeze",
    "make_sae",
    "threshold_value",
]
