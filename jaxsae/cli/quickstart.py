"""`jaxsae quickstart`: the whole job on a real language model, with nothing to configure."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxsae.data import HarvestConfig, open_cache
from jaxsae.errors import ConfigError
from jaxsae.evals import FeaturesConfig
from jaxsae.recipes import topk
from jaxsae.report import Subject, open_subject
from jaxsae.train import CheckpointPolicy, EvaluatePolicy, LogPolicy, TrainConfig
from jaxsae.train.memory import keep_freed_memory
from jaxsae.train.run_dir import plain, write_json

#: Keys of the evaluation that report.json carries, in its order.
NUMBERS: tuple[str, ...] = ("clean_ce", "sae_ce", "mean_ce", "zero_ce", "loss_recovered_mean", "loss_recovered_zero")
NUMBERS += ("kl", "fvu", "explained_variance", "l0", "dead_share", "d_in", "d_sae", "k")


@dataclass(frozen=True)
class Quickstart:
    """Train a TopK autoencoder on layer 9 of SmolLM2-135M and look at it: minutes on two CPU cores.

    Fetches the model (about 95 MB) and the text once, caches activations, trains, measures how much of the model's
    loss survives when its activations are replaced by reconstructions, and writes report.html and report.json.
    Interrupted, the same command goes on where it was.

    Attributes:
        out: folder for everything: cache, run, report.
        tokens: text tokens run through the model.
        epochs: passes over the cached activations.
        d_sae: number of latents.
        k: latents on per token.
        lr: peak learning rate.
        train_batch_size_tokens: activations per step.
        seed: of text order, initial weights and batches.
        cards: latents shown in the report.
    """

    out: Path = Path("runs/quickstart")
    tokens: int = 180_224
    epochs: float = 4.4
    d_sae: int = 8192
    k: int = 32
    lr: float = 1e-3
    train_batch_size_tokens: int = 1024
    seed: int = 0
    cards: int = 400

    def run(self) -> dict[str, Any]:
        """Does the four stages and returns what report.json holds."""
        self._check()
        keep_freed_memory()
        seconds = Stages(self.out / "stages.json")
        host = seconds.of("host", lambda: self.harvest_config.load_host())
        seconds.of("harvest", lambda: self._harvest(host))
        seconds.of("train", self._train)
        seconds.of("evaluate", lambda: self._evaluate(host))
        report = seconds.of("report", lambda: self._report(host))
        report = {**plain(report), "seconds": seconds.so_far()}
        write_json(self.out / "report.json", report)
        return report

    def _check(self) -> None:
        if self.tokens < 2048 or self.epochs <= 0:
            raise ConfigError(
                f"quickstart needs at least 2048 tokens and some epochs, found tokens = {self.tokens}, "
                f"epochs = {self.epochs}"
            )
        if not 0 < self.k <= self.d_sae:
            raise ConfigError(f"k must lie between 1 and d_sae = {self.d_sae}, found {self.k}")

    @property
    def harvest_config(self) -> HarvestConfig:
        """What is cached: the residual stream after block 9, over Wikipedia summaries."""
        return HarvestConfig(tokens=self.tokens, heldout_fraction=0.07, batch_size=8, seed=self.seed)

    def train_config(self, rows: int) -> TrainConfig:
        """The run, for a cache with this many training rows."""
        tokens = round(self.epochs * rows)
        recipe = topk.Config(  # type: ignore[attr-defined]
            d_sae=self.d_sae,
            k=self.k,
            lr=self.lr,
            lr_warm_up_steps=30,
            lr_decay_fraction=0.4,
            dead_after_tokens=max(1, rows // 2),
        )
        return TrainConfig(
            recipe,
            cache=str(self.out / "acts"),
            output=str(self.out / "run"),
            training_tokens=tokens,
            train_batch_size_tokens=self.train_batch_size_tokens,
            seed=self.seed,
            checkpoint=CheckpointPolicy(every_steps=200),
            log=LogPolicy(every_steps=20),
            evaluate=EvaluatePolicy(every_steps=200),
        )

    def _harvest(self, host: Any) -> None:
        from jaxsae.cli import harvest

        harvest.run(self.harvest_config, str(self.out / "acts"), host=host)

    def _train(self) -> None:
        from jaxsae.cli.train import print_table
        from jaxsae.train import train

        rows = open_cache(str(self.out / "acts")).split("train").rows
        print_table(train(self.train_config(rows)).summary)

    def _evaluate(self, host: Any) -> None:
        from jaxsae.cli import eval as evaluation

        if self._subject(host).evaluation is None:  # else it is of these very weights
            evaluation.run(self.out / "run", cache=str(self.out / "acts"), host=host)

    def _report(self, host: Any) -> dict[str, Any]:
        from jaxsae.cli import report

        subject, cards = self._subject(host), FeaturesConfig(latents=self.cards)
        title = f"{subject.site} of {host.name}"
        return report.run(subject, self.out / "report.html", title=title, config=cards, keys=NUMBERS)

    def _subject(self, host: Any) -> Subject:
        return open_subject(self.out / "run", cache=str(self.out / "acts"), host=host)


class Stages:
    """Seconds spent per stage, added up over interruptions, in a small JSON file."""

    def __init__(self, path: Path):
        self.path = path

    def so_far(self) -> dict[str, float]:
        """Seconds by stage."""
        try:
            return {str(k): float(v) for k, v in json.loads(self.path.read_text()).items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def of(self, name: str, work: Callable[[], Any]) -> Any:
        """Does the work and notes how long it took, also when it is interrupted."""
        begin = time.perf_counter()
        try:
            return work()
        finally:
            self._add(name, time.perf_counter() - begin)

    def _add(self, name: str, seconds: float) -> None:
        total = self.so_far()
        total[name] = round(total.get(name, 0.0) + seconds, 2)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(total, indent=1) + "\n")
