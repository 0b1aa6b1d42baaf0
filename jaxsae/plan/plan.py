"""From a training configuration and a topology to a plan, by compiling the step that `jaxsae train` would run."""

import dataclasses
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

import jaxsae
from jaxsae import parallel
from jaxsae.errors import ConfigError
from jaxsae.plan.advise import Advice, advise
from jaxsae.plan.measure import Measured
from jaxsae.plan.roofline import Part, bounds, roofline
from jaxsae.plan.setting import Setting, compile_step, exported_bytes, need_of
from jaxsae.plan.topology import Target
from jaxsae.recipes import Recipe
from jaxsae.train import TrainConfig
from jaxsae.train.run import method


@dataclass(frozen=True)
class Plan:
    """All that the page shows.

    Attributes:
        recipe: the method with everything filled in.
        runs: of a sweep, which one program steps together; 1 where there is none.
        target: topology by name; `chip` with its rates.
        limit: bytes that programs may take on each device that is used; None where nothing tells.
        devices: how many are used.
        mesh: devices by axis; `reason` says why.
        rows: of the global batch, which all runs read; `steps` of them in the run.
        measured: the compiled step.
        exported: bytes of a run's dictionary, which `train` takes into the memory of process 0 at the end.
        parts: least times by part; empty for unknown devices.
        advice: other settings that were compiled because this one does not fit.
        versions: of the programs that made it.
    """

    recipe: Recipe
    runs: int
    target: str
    chip: Any
    limit: float | None
    devices: int
    mesh: dict[str, int]
    reason: str
    rows: int
    steps: int
    measured: Measured
    exported: int
    parts: tuple[Part, ...]
    advice: tuple[Advice, ...]
    versions: dict[str, str]

    @property
    def seconds(self) -> tuple[float, float] | None:
        """A step's least time with perfect overlap, and with none; None for unknown devices."""
        return bounds(list(self.parts)) if self.parts else None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        measured = dataclasses.asdict(self.measured)
        step = self.seconds
        return {
            "recipe": self.recipe.name,
            "d_in": self.recipe.d_in,
            "d_sae": self.recipe.d_sae,
            "runs": self.runs,
            "topology": self.target,
            "chip": dataclasses.asdict(self.chip),
            "limit": self.limit,
            "devices": self.devices,
            "mesh": self.mesh,
            "reason": self.reason,
            "rows": self.rows,
            "steps": self.steps,
            **measured,
            "temporaries": self.measured.temporaries,
            "exported": self.exported,
            "received": {w: self.measured.received(w) for w in ("always", "branch", "loop")},
            "parts_of_step": [dataclasses.asdict(p) for p in self.parts],
            "step_seconds": None if step is None else {"overlapped": step[0], "in_turn": step[1]},
            "advice": [dataclasses.asdict(a) for a in self.advice],
            "versions": self.versions,
        }


def plan(
    config: TrainConfig,
    target: Target,
    *,
    dtype: str = "bfloat16",
    suggest: bool = True,
    tell: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Compiles the training step of a configuration, of a sweep that of all its runs, for a topology.

    Args:
        config: of the run; its recipe needs `d_in`, unless the cache is there to take it from.
        target: where to; see `open_target`.
        dtype: of the cached rows.
        suggest: where it does not fit, compile other settings.
        tell: hears which of them is being compiled.

    Raises:
        ConfigError: the mesh does not match the devices, or sizes do not divide; the nearest are named.
        DataError: a cache that is to tell the width of its rows cannot be read.

    Example:
        >>> from jaxsae.plan import open_target
        >>> from jaxsae.recipes import topk
        >>> config = TrainConfig(topk.Config(d_in=16, d_sae=64, k=4), cache="none", train_batch_size_tokens=64)
        >>> found = plan(config, open_target("local"))
        >>> found.measured.fits, found.measured.parts["parameters"]
        (True, 8512)
    """
    recipe, rows = method(config, _width(config)), config.train_batch_size_tokens
    chosen = parallel.choose_mesh(config.mesh, need_of(recipe, rows), target.devices, target.chip.memory or None)
    shape, limit = dict(chosen.mesh.shape), target.limit(chosen.mesh.size)
    setting = Setting(recipe, chosen.mesh, rows, dtype, config.mesh.zero, limit)
    measured = compile_step(setting)
    failed = measured.fits is False
    parts = [] if failed else roofline(setting.method, setting.runs, rows, shape, measured, target.chip)
    advice = advise(setting, target, compile_step, tell) if failed and suggest else ()
    return Plan(
        setting.method, setting.runs, target.name, target.chip, limit, chosen.mesh.size, shape, chosen.reason, rows,
        config.steps, measured, exported_bytes(setting), tuple(parts), advice, _versions(target),
    )  # fmt: skip


def _versions(target: Target) -> dict[str, str]:
    import jaxlib

    versions = {"jaxsae": jaxsae.__version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__}
    if target.name != "local":
        import importlib.metadata

        versions["libtpu"] = importlib.metadata.version("libtpu")
    return versions


def _width(config: TrainConfig) -> int:
    """Of the rows: as the configuration says, else of the cache's."""
    if config.recipe.d_in is not None:
        return config.recipe.d_in
    if "://" not in config.cache and not pathlib.Path(config.cache).expanduser().is_dir():
        raise ConfigError(
            f"a plan needs the width of the rows: give recipe.d_in, or a cache (there is none in {config.cache!r})"
        )
    from jaxsae.data.cache import open_cache

    return open_cache(config.cache).d(config.hook_name)
