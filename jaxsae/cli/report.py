"""`jaxsae report`: one page to look at a dictionary."""

import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from jaxsae.cli.eval import beside, print_numbers, tell_mesh
from jaxsae.evals.evaluate import EvalConfig
from jaxsae.evals.features import FeaturesConfig
from jaxsae.hosts import HostMesh


@dataclass(frozen=True)
class Report:
    """Write one self-contained HTML page: curves, numbers, density, and latents with the text that turns them on.

    A run gets report.html and report.json; for any other dictionary they go to NAME.report.html beside it.  What was
    not evaluated yet is evaluated first.

    Attributes:
        path: a run directory, or a dictionary in any format that jaxsae reads; a folder's URL will do.
        compare: a second one, drawn beside the first.
        cache: activation cache; a run knows its own.
        compare_cache: activation cache of the second; default its own, or the first one's.
        host: model for cross-entropies and promoted tokens: a name, a path, "auto" for the one the cache names, or
            "none".
        host_dtype: of its weights and activations; none for what the cache was made with.
        mesh: how host and dictionary are spread over the devices.
        site: site of the cache; may be left out if the dictionary or the cache says it.
        output: the page, something.html.
        title: of the page.
        features: which latents are shown, and what of them.
        evaluation: how to evaluate what has no evaluation yet.
    """

    path: Annotated[str, tyro.conf.Positional]
    compare: str | None = None
    cache: str | None = None
    compare_cache: str | None = None
    host: str = "auto"
    host_dtype: Literal["float32", "bfloat16"] | None = None
    mesh: HostMesh = field(default_factory=HostMesh)
    site: str | None = None
    output: str | None = None
    title: str = ""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)

    def run(self) -> dict[str, Any]:
        """Writes the page, prints a short table, and returns what report.json holds."""
        from jaxsae.report import open_subject

        host = None if self.host == "none" else self.host
        given: dict[str, Any] = {"host": host, "site": self.site, "mesh": self.mesh, "dtype": self.host_dtype}
        subject = open_subject(self.path, cache=self.cache, **given)
        tell_mesh(subject)
        other = None
        if self.compare is not None:
            other = open_subject(self.compare, cache=self.compare_cache, like=subject, **given)
        output = self.output or beside(self.path, subject.folder, "report.html")
        settings = {"title": self.title, "config": self.features, "evaluation": self.evaluation}
        return run(subject, output, other, **settings)


def run(subject: Any, output: str | os.PathLike, compare: Any = None, **settings: Any) -> dict[str, Any]:
    """`report.build_report` with progress and a closing table."""
    from jaxsae.cli._stages import stages
    from jaxsae.report import build_report

    with stages() as progress:
        report = build_report(subject, output, compare, progress=progress, **settings)
    print_numbers(report["name"], report, f"{os.fspath(output)} ({report['latents_shown']:,} latents)")
    return report
