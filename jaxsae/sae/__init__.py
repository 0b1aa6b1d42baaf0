"""What a sparse autoencoder is: the slots, their plain members, and the frozen object."""

from jaxsae.sae.activations import GroupMax, Linear, Quantised, TanhRelu
from jaxsae.sae.attention import Lorsa, Temporal, TemporalReadout
from jaxsae.sae.codes import Codes, DenseCodes, SparseCodes
from jaxsae.sae.columns import Column
from jaxsae.sae.controllers import L0Controller
from jaxsae.sae.density import Density, ZipfFit, density_value, fit_zipf, zipf_curve
from jaxsae.sae.dictionaries import Free, Normalised, Tied, Unit, decode_rows
from jaxsae.sae.encode import PreSelect
from jaxsae.sae.encoders import Affine, TiedAffine
from jaxsae.sae.folding import unit_atoms
from jaxsae.sae.gates import Gated, Glu, LayerNormed
from jaxsae.sae.importance import Importance, InputNorm
from jaxsae.sae.jump import JumpRelu
from jaxsae.sae.levels import One
from jaxsae.sae.nested import ByPrefix, ByRank, RandomPrefixes
from jaxsae.sae.norm_matching import AfaRule
from jaxsae.sae.norms import DatasetNorm, NoNorm, RowNorm
from jaxsae.sae.probe import Probe, ProbeRule, fit_probe
from jaxsae.sae.pursuit import OrthogonalPursuit, Pursuit
from jaxsae.sae.readout import Bias, LinearSkip, NoReadout
from jaxsae.sae.records import Ctx, Out, Pre, Rows, Selection, Want
from jaxsae.sae.row_shape import RowShape
from jaxsae.sae.rules import BatchRule, RowRule
from jaxsae.sae.sae import SAE, Meta, check_shapes, freeze, make_sae
from jaxsae.sae.scalings import RowLength, Standardise, Whiten
from jaxsae.sae.selectors import Rank, Relu, Threshold
from jaxsae.sae.sites import Blocks, BySite, PerSite, PerSiteSkip, SharedSites, Stacked, Triangular
from jaxsae.sae.soft_cap import SoftCap
from jaxsae.sae.trackers import EmaThreshold, Fired, threshold_value
from jaxsae.sae.transforms import Transforms
from jaxsae.sae.truncate import at_k, at_prefix
from jaxsae.sae.views import Identity, Scored

__all__ = [
    "AfaRule",
    "Affine",
    "BatchRule",
    "Bias",
    "Blocks",
    "ByPrefix",
    "ByRank",
    "BySite",
    "Codes",
    "Column",
    "Ctx",
    "DatasetNorm",
    "DenseCodes",
    "Density",
    "EmaThreshold",
    "Fired",
    "Free",
    "Gated",
    "Glu",
    "GroupMax",
    "Identity",
    "Importance",
    "InputNorm",
    "JumpRelu",
    "L0Controller",
    "LayerNormed",
    "Linear",
    "LinearSkip",
    "Lorsa",
    "Meta",
    "NoNorm",
    "NoReadout",
    "Normalised",
    "One",
    "OrthogonalPursuit",
    "Out",
    "PerSite",
    "PerSiteSkip",
    "Pre",
    "PreSelect",
    "Probe",
    "ProbeRule",
    "Pursuit",
    "Quantised",
    "RandomPrefixes",
    "Rank",
    "Relu",
    "RowLength",
    "RowNorm",
    "RowRule",
    "RowShape",
    "Rows",
    "SAE",
    "Scored",
    "Selection",
    "SharedSites",
    "SoftCap",
    "SparseCodes",
    "Stacked",
    "Standardise",
    "TanhRelu",
    "Temporal",
    "TemporalReadout",
    "Threshold",
    "Tied",
    "TiedAffine",
    "Transforms",
    "Triangular",
    "Unit",
    "Want",
    "Whiten",
    "ZipfFit",
    "at_k",
    "at_prefix",
    "check_shapes",
    "decode_rows",
    "density_value",
    "fit_probe",
    "fit_zipf",
    "freeze",
    "make_sae",
    "threshold_value",
    "unit_atoms",
    "zipf_curve",
]
