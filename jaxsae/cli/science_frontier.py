"""`jaxsae science frontier`: families and baselines on a real model, FVU and loss recovered against L0."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ScienceFrontier:
    """Train every family at several sparsities on layer 9 of SmolLM2-135M at one token budget, and draw the frontiers.

    Writes frontier.json, frontier.svg and a section of science.md.  Every finished point is kept in the run directory,
    so an interrupted command goes on where it was, and families can be added later.

    Attributes:
        only: families or baselines to run; none for all.
        seeds: number of seeds, from 0 on.
        out: folder of the results.
        run_dir: folder that keeps finished points.
        cache: activation cache; harvested there if it does not exist.
        tokens: tokens to harvest.
        d_sae: latents of every dictionary.
        steps: updates of every run.
        rows: rows of a batch.
        lr: peak learning rate of every run.
        ce_tokens: held-out tokens for loss recovered.
    """

    only: tuple[str, ...] = ()
    seeds: int = 3
    out: Path = Path("docs")
    run_dir: Path = Path("runs/science/frontier")
    cache: Path = Path("runs/science/acts")
    tokens: int = 131_072
    d_sae: int = 1024
    steps: int = 200
    rows: int = 512
    lr: float = 1e-3
    ce_tokens: int = 1024

    def run(self) -> dict[str, Any]:
        """Runs what is missing, and returns what frontier.json holds."""
        from jaxsae.cli import harvest
        from jaxsae.cli._stages import stages
        from jaxsae.data import HarvestConfig, open_cache
        from jaxsae.science import frontier, page, picture
        from jaxsae.train.memory import keep_freed_memory
        from jaxsae.train.run_dir import write_atomic

        frontier.check_names(self.only)
        keep_freed_memory()
        began = time.perf_counter()
        config = HarvestConfig(tokens=self.tokens, heldout_fraction=0.07, batch_size=8)
        host = config.load_host()
        harvest.run(config, str(self.cache), host=host)
        study = frontier.Frontier(
            self.d_sae, self.steps, self.rows, self.lr, tuple(range(self.seeds)), 4096, self.ce_tokens
        )
        cache = open_cache(str(self.cache))
        with stages() as progress:
            points = frontier.run(study, cache, host, self.run_dir, self.only, progress)
        result = {
            "run": page.circumstances("jaxsae science frontier", time.perf_counter() - began),
            "study": {n: getattr(study, n) for n in study.__dataclass_fields__},
            "data": f"{cache.site(None)} of {host.name}, {cache.split('train').rows:,} training rows",
            "points": points,
        }
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomic(self.out / "frontier.json", json.dumps(result, indent=1) + "\n")
        write_atomic(self.out / "frontier.svg", picture.draw(points, picture.PANELS, result["data"]))
        page.write(self.out, None, None)
        print(
            f"{len(points)} points of {len({p['family'] for p in points})} families; written to {self.out}/frontier.svg"
        )
        return result
