"""What a coder is asked to minimise: terms, how rows are reduced, and how weights move over time."""

from jaxsae.objective.allocation import Afa, AuxZipf, ProbeDrift, ProbeError, RelativeL1, Underused
from jaxsae.objective.annealing import PAnneal
from jaxsae.objective.gate import GateAux, GateL1
from jaxsae.objective.orthogonality import Orthogonality
from jaxsae.objective.penalties import PNorm, Tanh, TanhQuadratic
from jaxsae.objective.prefix_penalty import PrefixPenalty
from jaxsae.objective.reducers import Mean, Reducer, Tilted
from jaxsae.objective.revival import Ghost, PreAct, Revive
from jaxsae.objective.schedules import Anneal, Constant, Cosine, CosineWarmUp, Linear, Schedule
from jaxsae.objective.terms import L1, AuxK, Mse, NormalisedMse, RowNormalisedMse, Term, batch_variance, weight
from jaxsae.objective.thresholds import L0Step, TargetL0

__all__ = [
    "Afa",
    "Anneal",
    "AuxK",
    "AuxZipf",
    "Constant",
    "Cosine",
    "CosineWarmUp",
    "GateAux",
    "GateL1",
    "Ghost",
    "L0Step",
    "L1",
    "Linear",
    "Mean",
    "Mse",
    "NormalisedMse",
    "Orthogonality",
    "PAnneal",
    "PNorm",
    "PreAct",
    "PrefixPenalty",
    "ProbeDrift",
    "ProbeError",
    "Reducer",
    "RelativeL1",
    "Revive",
    "RowNormalisedMse",
    "Schedule",
    "Tanh",
    "TanhQuadratic",
    "TargetL0",
    "Term",
    "Tilted",
    "Underused",
    "batch_variance",
    "weight",
]
