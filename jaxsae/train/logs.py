"""What a run tells about itself: records, and those who write them down."""

import contextlib
import json
import math
import os
import pathlib
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from jaxsae.errors import CheckpointError, ConfigError
from jaxsae.train.run_dir import RunDir, plain, write_atomic

Record = dict[str, Any]


class Writer(Protocol):
    """Takes finished records: {"kind": "train" | "heldout" | "event", "step", "tokens", "time", metrics...}."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


# ---------------------------------------------------------------------------------------------------------------- JSONL
def read_records(path: str | os.PathLike, until: int | None = None) -> list[Record]:
    """The records of a `log.jsonl` up to a step, in order; what a kill or a broken disk left of a line is left out.

    Raises:
        CheckpointError: it cannot be read.

    Example:
        >>> read_records("/nowhere/log.jsonl")
        []
    """
    records: list[Record] = []
    file = pathlib.Path(path)
    try:
        text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    except OSError as e:
        raise CheckpointError(f"{str(file)!r} cannot be read: {e.strerror or e}; check it and its permissions") from e
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and "step" in record and (until is None or record["step"] <= until):
            records.append(record)
    return records


class JsonLines:
    """`log.jsonl`: one object per line, on disk as soon as it is known; numbers that are not finite become null.

    Args:
        path: the file.
        until: records of later steps are dropped first: they were made after the checkpoint a run continues from.
    """

    def __init__(self, path: str | os.PathLike, until: int = 0):
        path = pathlib.Path(path)
        self.kept = read_records(path, until)
        write_atomic(path, "".join(_line(r) for r in self.kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def write(self, record: Record) -> None:
        try:
            self._file.write(_line(record))
            self._file.flush()
        except OSError as e:
            raise self._failed(e) from e

    def close(self) -> None:
        try:
            self._file.close()  # writes what a full disk did not take before
        except OSError as e:
            raise self._failed(e) from e

    def _failed(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"{self._file.name!r} cannot be written: {error.strerror}; make room, run again")


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(plain(record)) + "\n"


# ------------------------------------------------------------------------------------------------------------- optional
class TensorBoard:
    """Event files for TensorBoard, one curve per metric, `train/...` and `heldout/...`."""

    def __init__(self, folder: str | os.PathLike, step: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as e:
            raise ConfigError("log.tensorboard needs the package tensorboardX; install jaxsae[tracking]") from e
        self._writer = SummaryWriter(os.fspath(folder), purge_step=step + 1)

    def write(self, record: Record) -> None:
        for name, value in _metrics(record).items():
            self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases run; a continued run goes on under the same id."""

    def __init__(self, project: str, run: RunDir, config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError as e:
            raise ConfigError("log.wandb_project needs the package wandb; install jaxsae[tracking]") from e
        note = run.path / "wandb_id"
        if not note.exists():
            note.write_text(uuid.uuid4().hex[:12])
        self._run = wandb.init(
            project=project, id=note.read_text().strip(), resume="allow", dir=run.path, config=dict(config)
        )

    def write(self, record: Record) -> None:
        values = {f"{record['kind']}/{name}": value for name, value in _metrics(record).items()}
        self._run.log(values | {"tokens": record["tokens"]}, step=record["step"])

    def close(self) -> None:
        self._run.finish()


def _metrics(record: Record) -> dict[str, float]:
    skip = ("kind", "step", "tokens", "time")
    return {k: v for k, v in record.items() if k not in skip and isinstance(v, (int, float))}


# ------------------------------------------------------------------------------------------------------------------ log
class NotFinite(Exception):
    """A record holds a loss that is no number: raised to the loop, which finds out why."""

    def __init__(self, step: int, loss: float):
        super().__init__(step, loss)
        self.step, self.loss = step, loss


@dataclass(frozen=True)
class _Pending:
    kind: str
    step: int
    time: float
    metrics: Sequence[Mapping[str, jax.Array]]


def summarise(metrics: Mapping[str, Any]) -> Record:
    """Plain numbers of one recipe's metrics; of a fleet's [N], means over its sound runs, and all under "members".

    A run is sound if it goes on and its loss is a number: parameters that a last step has spoiled show in an evaluation
    before the next step stops their run.

    Example:
        >>> found = summarise({"loss": np.array([1.0, np.inf, 3.0]), "alive": np.array([1.0, 1.0, 0.0])})
        >>> found["loss"], found["alive"]
        (1.0, 2.0)
    """
    if "alive" not in metrics:
        return {k: float(v) for k, v in metrics.items()}
    alive = np.asarray(metrics["alive"]) > 0
    sound = alive & np.isfinite(metrics.get("loss", 0.0))
    means = {k: float(np.mean(v[sound])) if sound.any() else math.nan for k, v in metrics.items() if k != "alive"}
    members = {k: np.asarray(v, float).tolist() for k, v in metrics.items()}
    return {**means, "alive": float(alive.sum()), "members": members}


class Log:
    """Collects metrics as device arrays and hands them on as numbers one record late.

    By then the device has long finished them, so fetching waits for nothing and the device never waits for the host.

    Args:
        writers: who gets the records.
        tokens_per_step: activations per step.
        seconds: time the run had taken before this session.
        last: newest records of earlier sessions by kind.
    """

    def __init__(
        self,
        writers: Sequence[Writer],
        tokens_per_step: int,
        seconds: float = 0.0,
        last: Mapping[str, Record] | None = None,
    ):
        self.writers, self.tokens_per_step = list(writers), tokens_per_step
        self.last: dict[str, Record] = dict(last or {})
        self._pending: list[_Pending] = []
        self._start = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Time the run has taken, over all its sessions."""
        return time.monotonic() - self._start

    def push(self, kind: str, step: int, metrics: Sequence[Mapping[str, jax.Array]]) -> None:
        """Takes metrics (of several batches: their mean is recorded) that may not be computed yet.

        Raises:
            NotFinite: a record pushed earlier turns out to have such a loss.
        """
        self.flush(before=step)
        self._pending.append(_Pending(kind, step, self.seconds, metrics))

    def event(self, step: int, text: str) -> None:
        """Writes a remark down at once."""
        self._write({"kind": "event", **self._when(step, self.seconds), "event": text})

    def flush(self, before: int | None = None) -> None:
        """Fetches and writes what is pending, of all steps or of those before one.

        Raises:
            NotFinite: a loss is nan or infinite; its record is written, those after it are dropped.
        """
        later = [e for e in self._pending if before is not None and e.step >= before]
        pending, self._pending = self._pending[: len(self._pending) - len(later)], later
        for entry in pending:
            values = jax.device_get(list(entry.metrics))
            means = summarise({k: np.mean([v[k] for v in values], axis=0) for k in values[0]})
            self._write({"kind": entry.kind, **self._when(entry.step, entry.time), **means})
            if not math.isfinite(means.get("loss", 0.0)):
                raise NotFinite(entry.step, means["loss"])

    def _when(self, step: int, seconds: float) -> Record:
        return {"step": step, "tokens": step * self.tokens_per_step, "time": round(seconds, 3)}

    def _write(self, record: Record) -> None:
        self.last[record["kind"]] = record
        for writer in self.writers:
            writer.write(record)

    def close(self) -> None:
        """Closes all writers, also where one of them fails: a progress bar left open would keep the terminal."""
        with contextlib.ExitStack() as stack:
            for writer in self.writers:
                stack.callback(writer.close)
