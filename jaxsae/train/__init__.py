"""Training: the loop around `recipes.step`, its run directory, its log, and how it goes on after any end."""

from jaxsae.train.config import CheckpointPolicy, EvaluatePolicy, LogPolicy, TrainConfig, WatchPolicy
from jaxsae.train.export import export
from jaxsae.train.fleet import Fleet, Member, parse_sweep
from jaxsae.train.logs import read_records
from jaxsae.train.loop import Fitted, fit
from jaxsae.train.run import TrainResult, train
from jaxsae.train.run_dir import RunDir
from jaxsae.train.stop import Diverged, Interrupted

__all__ = [
    "CheckpointPolicy",
    "Diverged",
    "EvaluatePolicy",
    "Fitted",
    "Fleet",
    "Interrupted",
    "LogPolicy",
    "Member",
    "RunDir",
    "TrainConfig",
    "TrainResult",
    "WatchPolicy",
    "export",
    "fit",
    "parse_sweep",
    "read_records",
    "train",
]
