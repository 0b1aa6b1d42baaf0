"""What a coder is asked to minimise: terms, how rows are reduced, and how weights move over time."""

from jaxsae.objective.allocation import Afa, AuxZipf, ProbeDrift, ProbeError, RelativeL1, Underused
from jaxsae.objective.reducers import Mean, Reducer, Tilted
from jaxsae.objective.schedules import Constant, Cosine, Linear, Schedule
from jaxsae.objective.terms import L1, AuxK, Mse, NormalisedMse, Term, batch_variance, weight

__all__ = [
    "L1",
    "Afa",
    "AuxZipf",
    "ProbeDrift",
    "ProbeError",
    "RelativeL1",
    "Underused",
    "AuxK",
    "Constant",
    "Cosine",
    "Linear",
    "Mean",
    "Mse",
    "NormalisedMse",
    "Reducer",
    "Schedule",
    "Term",
    "Tilted",
    "batch_variance",
    "weight",
]
