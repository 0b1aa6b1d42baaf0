"""The registry of studies, and the runner that keeps every finished one."""

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxsae.config import load_folder
from jaxsae.errors import ConfigError, closest
from jaxsae.science import arms, beds, fleet, measures
from jaxsae.science.finding import Finding
from jaxsae.science.lab import Lab, ScienceError

#: Gets a lab and one of the study's settings; the first finding is the headline.  A body that yields its findings keeps
#: those that it made before a later one failed.
Body = Callable[[Lab, dict[str, Any]], Iterable[Finding]]


@dataclass(frozen=True, eq=False)
class Study:
    """One method's miniature.

    Attributes:
        id: as in "A6".
        method: recipe or recipes it is about.
        paper: authors, year, arXiv number.
        claim: the paper's headline in one sentence.
        bed: the testbed, in words.
        body: what is run.
        settings: of the body; the first is the study, the others are tried only where it does not show the claim.
    """

    id: str
    method: str
    paper: str
    claim: str
    bed: str
    body: Body
    settings: tuple[dict[str, Any], ...]


_STUDIES: dict[str, Study] = {}


def study(
    id: str, method: str, paper: str, claim: str, bed: str, settings: Sequence[dict[str, Any]] = ({},)
) -> Callable[[Body], Body]:
    """Decorator: enrols a study.  Arguments as the attributes of `Study`."""

    def enrol(body: Body) -> Body:
        _STUDIES[id] = Study(id, method, paper, claim, bed, body, tuple(settings))
        return body

    return enrol


def registered() -> dict[str, Study]:
    """All studies by id, in the order of their numbers."""
    load_folder("jaxsae.science.methods")
    return dict(sorted(_STUDIES.items(), key=lambda item: int(item[0][1:])))


def chosen(only: Iterable[str] | None) -> dict[str, Study]:
    """The studies asked for, by id or by method; all where nothing is asked for.

    Raises:
        ConfigError: no such study.
    """
    known = registered()
    names = {s.method: s.id for s in known.values()} | {i: i for i in known}
    wanted = list(only or known)
    for name in wanted:
        if name not in names:
            raise ConfigError(f"there is no study of {name!r}{closest(name, names)}")
    return {names[name]: known[names[name]] for name in wanted}


def run(lab: Lab, folder: Path, only: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Runs studies and returns their records; one that is in `folder` already, under the same seeds and code, is kept.

    Args:
        lab: seeds, steps and progress.
        folder: keeps one JSON file per finished study.
        only: ids or methods; None for all.

    Returns:
        One record per study: id, method, paper, claim, bed, seeds, seconds, and `tried`: per setting its findings.

    Raises:
        ConfigError: no such study.
    """
    studies, records = chosen(only), []
    folder.mkdir(parents=True, exist_ok=True)
    for one in studies.values():
        path, mark = folder / f"{one.id}.json", _mark(one, lab)
        record = _kept(path, mark)
        if record is None:
            record = {**_record(one, lab), "mark": mark}
            path.write_text(json.dumps(record, indent=1) + "\n")
            record = json.loads(path.read_text())  # lists for tuples, as a kept one has
        records.append(record)
    return records


def _mark(one: Study, lab: Lab) -> str:
    """Changes with the seeds and with the code of the study and of what all studies share."""
    code = [inspect.getsource(m) for m in (inspect.getmodule(one.body), arms, beds, fleet, measures) if m]
    text = json.dumps([code, list(lab.seeds), lab.steps, one.settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _kept(path: Path, mark: str) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record if record.get("mark") == mark else None


def _record(one: Study, lab: Lab) -> dict[str, Any]:
    """Runs the first setting; the others only if it does not show the claim.  All that were run are in the record."""
    began, tried = time.time(), []
    for setting in one.settings:
        tried.append(_try(one, lab, setting))
        if tried[0]["verdict"] == "shown":
            break
    facts = {n: getattr(one, n) for n in ("id", "method", "paper", "claim", "bed")}
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(began))
    return {
        **facts,
        "seeds": list(lab.seeds),
        "steps_factor": lab.steps,
        "verdict": tried[0]["verdict"],
        "tried": tried,
        "began": when,
        "seconds": round(time.time() - began, 1),
    }


def _try(one: Study, lab: Lab, setting: dict[str, Any]) -> dict[str, Any]:
    """The findings of one setting; those made before something could not be read off stay, and the problem is told."""
    found: list[Finding] = []
    problem = {}
    try:
        for one_more in one.body(lab, setting):
            found.append(one_more)
    except ScienceError as e:
        problem = {"problem": str(e)}
    verdict = found[0].verdict if found else "not shown"
    return {"setting": setting, "verdict": verdict, "findings": [f._asdict() for f in found], **problem}
