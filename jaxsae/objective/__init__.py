"""What a coder is asked to minimise: terms, how rows are reduced, and how weights move over time."""

from jaxsae.objective.allocation import Afa, AuxZipf, ProbeDrift, ProbeError, RelativeL1, Underused
from jaxsae.objective.orthogonality import Orthogonality
from jaxsae.objective.prefix_penalty import PrefixPenalty
from jaxsae.objective.reducers import Mean, Reducer, Tilted
from jaxsae.objective.schedules import Anneal, Constant, Cosine, Linear, Schedule
from jaxsae.objective.terms import L1, AuxK, Mse, NormalisedMse, RowNormalisedMse, Term, batch_variance, weight

__all__ = [
    "L1",
    "Afa",
    "Anneal",
    "AuxK",
    "AuxZipf",
    "Constant",
    "Cosine",
    "Linear",
    "Mean",
    "Mse",
    "NormalisedMse",
    "Orthogonality",
    "PrefixPenalty",
    "ProbeDrift",
    "ProbeError",
    "Reducer",
    "RelativeL1",
    "RowNormalisedMse",
    "Schedule",
    "Term",
    "Tilted",
    "Underused",
    "batch_variance",
    "weight",
]
