"""`jaxsae plan`: whether a run fits and what it costs, before anything is rented."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxsae.cli._results import check_place, write_result
from jaxsae.config import from_dict, read_file
from jaxsae.errors import ConfigError
from jaxsae.train import TrainConfig
from jaxsae.train.run_dir import write_atomic

if TYPE_CHECKING:
    from jaxsae.plan.advise import Advice

#: Ends of the name of a page; what else follows a dot belongs to the name, as in plan.v5e-4x4.
_PAGES = (".md", ".txt")
_VERDICTS = {True: "fits", False: "does not fit", None: "no limit known"}


@dataclass(frozen=True)
class Plan:
    """Compile the training step of a configuration, or of all runs of its sweep, for a topology, and say what it needs.

    No TPU is needed for a TPU topology, only libtpu.  Ends with status 1 where the step does not fit.

    Attributes:
        file: YAML file of a training run, as for `jaxsae train --config`.
        topology: v5e:16x16, v5p:2x2x1, v6e:2x4 and the like, or local.
        dtype: of the cached rows.
        output: write the page to this file and its data beside it, as .json; by default the page is printed.
        suggest: where it does not fit, compile other settings, and if none of them is enough larger slices, and say
            which do.
    """

    file: Annotated[str, tyro.conf.Positional]
    topology: str = "local"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    output: str | None = None
    suggest: bool = True

    def run(self) -> dict[str, Any]:
        """Prints or writes the page, and returns its data."""
        if self.topology != "local":
            import jax

            jax.config.update("jax_platforms", "cpu")  # nothing is run: do not look for, or lock, a TPU
        from jaxsae.plan import open_target, page, plan

        config = from_dict(read_file(self.file), TrainConfig)
        if (self.output or "").endswith(".json"):
            raise ConfigError(
                f"--output names the page, the data beside it gets the same name in .json: expected one such as plan.md"
                f", found {self.output!r}"
            )
        check_place(self.output or "")
        print(f"compiling the step for {self.topology} ...", file=sys.stderr)
        tell = lambda text: print(text, file=sys.stderr)  # noqa: E731
        found = plan(config, open_target(self.topology), dtype=self.dtype, suggest=self.suggest, tell=tell)
        data, text = found.to_json(), page(found, self.command())
        if self.output is None:
            print(text)
        else:
            write_atomic(self.output, text)
            write_result(data_beside(self.output), data)
            print(f"{_VERDICTS[found.measured.fits]}: {self.output}")
        if found.measured.fits is False:
            raise ConfigError(f"{self.file}: the step does not fit on {self.topology}; {self._way_out(found.advice)}")
        return data

    def _way_out(self, advice: "Sequence[Advice]") -> str:
        works = [a.change for a in advice if a.fits]
        if works:
            return f"it fits with: {', or '.join(works)}"
        if not self.suggest:
            return "call it with --suggest to have other settings and larger slices compiled"
        tried = ", ".join(a.change for a in advice) or "nothing applies"
        return f"nor with what was tried ({tried}); take fewer latents, or another chip"

    def command(self) -> str:
        """What was called, for the page."""
        dtype = "" if self.dtype == "bfloat16" else f" --dtype {self.dtype}"
        return f"jaxsae plan {self.file} --topology {self.topology}{dtype}"


def data_beside(page: str) -> str:
    """Where the data of a page lies.

    Example:
        >>> data_beside("gs://bucket/a.v5e-4x4.md"), data_beside("a.v5e-4x4")
        ('gs://bucket/a.v5e-4x4.json', 'a.v5e-4x4.json')
    """
    name, end = os.path.splitext(page)
    return f"{name if end in _PAGES else page}.json"
