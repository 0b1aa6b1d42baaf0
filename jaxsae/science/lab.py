"""Arms of a comparison: trained alike, tuned alike, read off at equal L0."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxsae.errors import JaxsaeError
from jaxsae.science.finding import Finding, finding
from jaxsae.science.fleet import Job, Judged, Trained, train
from jaxsae.science.measures import MEASURES, Run

#: Learning rates that every arm may choose from, and the seed on which it does; no reported seed is ever tuned on.
LEARNING_RATES: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 16e-3, 32e-3)
TUNING_SEED = 1000


class ScienceError(JaxsaeError):
    """A study that cannot be read off as planned, such as a target L0 that no run came near."""


@dataclass(eq=False)
class Arm:
    """One method over its sweep: N seeds times G settings, judged on held-out rows.

    Attributes:
        name: as the table shows it.
        trained: the fleet.
        judged: its dictionaries on held-out rows.
        facts: sweep, learning rate, steps.
    """

    name: str
    trained: Trained
    judged: Judged
    facts: dict[str, Any]
    _known: dict[str, np.ndarray] = field(default_factory=dict)

    def values(self, measure: str | Callable[[Run], float]) -> np.ndarray:
        """A measure of every run: [N, G]."""
        name = measure if isinstance(measure, str) else measure.__name__
        if name not in self._known:
            f = MEASURES[measure] if isinstance(measure, str) else measure
            n, g = self.judged.codes.shape[:2]
            self._known[name] = np.array([[f(self.run(i, j)) for j in range(g)] for i in range(n)])
        return self._known[name]

    def run(self, seed: int, setting: int) -> Run:
        """One run's arrays, on the host."""
        j = self.judged
        sae = jax.tree.map(lambda a: a[seed, setting], j.sae)
        truth = jax.tree.map(lambda a: np.asarray(a[seed]), j.truth)
        parts = (sae.W_dec, sae.b_dec, j.codes[seed, setting], j.yhat[seed, setting], j.x[seed], j.true[seed])
        return Run(*(np.asarray(a) for a in parts), truth)

    def at(self, measure: str | Callable[[Run], float], l0: float | np.ndarray) -> np.ndarray:
        """A measure at L0 = l0 (one for all, or [N]), for every seed [N]: linear in log L0 between the settings around.

        Raises:
            ScienceError: some seed's runs do not reach that L0 from both sides.
        """
        targets = np.broadcast_to(l0, len(self.judged.codes))
        rows = zip(self.values("l0"), self.values(measure), targets, strict=True)
        return np.array([self._between(*row) for row in rows])

    def _between(self, l0s: np.ndarray, values: np.ndarray, l0: float) -> float:
        order = np.argsort(l0s)
        if not l0s[order[0]] * 0.98 <= l0 <= l0s[order[-1]] * 1.02:
            raise ScienceError(
                f"{self.name}: no run with L0 on both sides of {l0:g}, found {np.round(l0s[order], 2).tolist()}; "
                "widen the sweep"
            )
        return float(np.interp(np.log(l0), np.log(np.maximum(l0s[order], 1e-3)), values[order]))


def tuning(sweep: dict[str, Sequence[float]]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Seeds and sweep of a tuning fleet: the same seed for every learning rate.

    With as many learning rates as reported seeds it has the shape of the reported fleet, and shares its program.
    """
    return (TUNING_SEED,) * len(LEARNING_RATES), {"lr": np.asarray(LEARNING_RATES)[:, None], **sweep}


@dataclass(eq=False)
class Lab:
    """Where studies get their arms from; equal arms of several studies are trained once.

    Attributes:
        seeds: of the reported runs.
        steps: multiplies every study's number of steps (a quick look takes less than 1).
        progress: progress(stage, done, total).
        rates: learning rates that `single` has chosen.
    """

    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    steps: float = 1.0
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    rates: dict[str, float] = field(default_factory=dict)
    _arms: dict[Any, Arm] = field(default_factory=dict)
    _fleets: dict[Any, Trained] = field(default_factory=dict)

    def arm(self, name: str, job: Job, sweep: str, values: Sequence[float], l0: float, lr: float | None = None) -> Arm:
        """A method over a sweep, with the learning rate that is best for it.

        The learning rate is the one of `LEARNING_RATES` with the least FVU at L0 = l0 on the tuning seed.

        Args:
            name: as the table shows it.
            job: recipe, testbed, steps.
            sweep: the scalar that moves its sparsity.
            values: of that scalar, so that L0 lies on both sides of l0.
            l0: where arms are compared.
            lr: a learning rate to take instead.
        """
        job = job._replace(steps=max(1, round(self.steps * job.steps)))
        key = (job, sweep, tuple(values), l0, lr)
        if key not in self._arms:
            lr = self._tuned(name, job, sweep, values, l0) if lr is None else lr
            trained = self._train(name, job, self.seeds, {"lr": [lr] * len(values), sweep: values})
            facts = {sweep: list(values), "lr": lr, "steps": job.steps, "rows": job.rows, "recipe": job.recipe.name}
            self._arms[key] = Arm(name, trained, trained.judge(), facts)
        return self._arms[key]

    def single(self, name: str, job: Job, score: Callable[[Trained], np.ndarray]) -> Trained:
        """One run per seed of a method without a sparsity to sweep.

        Args:
            name: as the table shows it.
            job: recipe, testbed, steps.
            score: one number per run of a fleet, [N, G]; the learning rate with the least on the tuning seed is taken.
        """
        job = job._replace(steps=max(1, round(self.steps * job.steps)))
        key = (job, score)
        if key not in self._fleets:
            stage = f"{name}, learning rate"
            tuned = self._train(stage, job, *tuning({}))
            lr = LEARNING_RATES[int(np.argmin(score(tuned)[:, 0]))]
            self._fleets[key] = self._train(name, job, self.seeds, {"lr": (lr,)})
            self.rates[name] = lr
        return self._fleets[key]

    def _train(self, name: str, job: Job, seeds: Sequence[int], sweep: dict[str, Any]) -> Trained:
        return train(job, seeds, sweep, lambda done: self.progress(name, done, job.steps))

    def _tuned(self, name: str, job: Job, sweep: str, values: Sequence[float], l0: float) -> float:
        trained = self._train(f"{name}, learning rate", job, *tuning({sweep: values}))
        arm = Arm(name, trained, trained.judge(), {})
        l0s, fvus = arm.values("l0"), arm.values("fvu")
        score = []
        for a, b in zip(l0s, fvus, strict=True):
            try:
                score.append(arm._between(a, b, l0))
            except ScienceError:
                score.append(np.inf)
        if not np.isfinite(score).any():
            raise ScienceError(
                f"{name}: no learning rate reaches L0 = {l0:g} within the sweep, found {np.round(l0s, 2).tolist()}"
            )
        return float(LEARNING_RATES[int(np.argmin(score))])

    def compare(
        self,
        claim: str,
        better: Arm,
        worse: Arm,
        measure: str | Callable[[Run], float],
        l0: float,
        higher: bool = False,
    ) -> Finding:
        """A finding about a measure at equal L0."""
        facts = {"l0": l0, better.name: better.facts, worse.name: worse.facts}
        sides = [(arm.name, arm.at(measure, l0)) for arm in (better, worse)]
        return finding(claim, *sides, higher=higher, facts=facts)
