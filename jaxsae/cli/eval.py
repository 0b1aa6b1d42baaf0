"""`jaxsae eval`: the numbers of a dictionary."""

import contextlib
import dataclasses
import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from jaxsae.evals.evaluate import EvalConfig
from jaxsae.evals.reconstruction import silent
from jaxsae.hosts import HostMesh


@dataclass(frozen=True, kw_only=True)
class Eval(EvalConfig):
    """Measure a dictionary: reconstruction and sparsity on held-out rows, and how much of the host's loss it recovers.

    A run gets the numbers in eval.json; for any other dictionary they go to NAME.eval.json beside it.

    Attributes:
        path: a run directory, or a dictionary in any format that jaxsae reads; a folder's URL will do.
        cache: activation cache; a run knows its own.
        host: model for the cross-entropies: a name, a path, "auto" for the one the cache names, or "none".
        host_dtype: of its weights and activations; none for what the cache was made with.
        mesh: how host and dictionary are spread over the devices of each process.
        site: site of the cache; may be left out if the dictionary or the cache says it.
        output: write the JSON file here instead.
        split: rows and text of which split; "heldout" documents are never trained on.
        rows: rows for the reconstruction metrics; none for all.
        batch_rows: rows per device call.
        ce_tokens: tokens for the cross-entropies, 0 for none; whole windows, so slightly more.
        ce_batch_windows: windows per device call.
        replace_from: first position of a window that is replaced.
        bootstrap: resamples of the documents behind the standard errors.
        seed: of the resampling.
    """

    path: Annotated[str, tyro.conf.Positional]
    cache: str | None = None
    host: str = "auto"
    host_dtype: Literal["float32", "bfloat16"] | None = None
    mesh: HostMesh = field(default_factory=HostMesh)
    site: str | None = None
    output: str | None = None

    def run(self) -> dict[str, Any]:
        """Evaluates, prints a short table, and returns what eval.json holds."""
        config = EvalConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(EvalConfig)})
        host = None if self.host == "none" else self.host
        where = {"site": self.site, "mesh": self.mesh, "dtype": self.host_dtype}
        return run(self.path, self.output, config, cache=self.cache, host=host, **where)


def run(
    path: str | os.PathLike,
    output: str | os.PathLike | None = None,
    config: EvalConfig = EvalConfig(),
    **surroundings: Any,
) -> dict[str, Any]:
    """Evaluates with progress, prints the table, writes the JSON file; see `Eval` and `report.open_subject`."""
    from jaxsae import parallel
    from jaxsae.cli._results import check_place
    from jaxsae.cli._stages import stages
    from jaxsae.report import evaluated, open_subject
    from jaxsae.train.run_dir import plain, write_json

    subject = open_subject(path, **surroundings)
    tell_mesh(subject)
    place = output or beside(path, subject.folder, "eval.json")
    parallel.on_first("place", lambda: check_place(os.fspath(place)))
    with stages() if parallel.first() else contextlib.nullcontext(silent) as progress:
        numbers = plain(evaluated(subject, config, progress))

    def tell() -> None:
        write_json(place, numbers)
        print_numbers(subject.name, numbers, str(place))

    parallel.on_first("evaluation", tell)
    return numbers


def tell_mesh(subject: Any) -> None:
    """Says on which devices a subject lies, where they are several."""
    import rich.console

    from jaxsae import parallel

    if subject.mesh is not None:
        rich.console.Console(stderr=True, quiet=not parallel.first()).print(f"host and dictionary on {subject.mesh}")


def beside(path: str | os.PathLike, folder: str | os.PathLike | None, name: str) -> str:
    """Where a result belongs: in the run's folder, or beside a dictionary of that path.

    Example:
        >>> beside("gs://bucket/run", "gs://bucket/run", "eval.json"), beside("saes/a", None, "eval.json")
        ('gs://bucket/run/eval.json', 'saes/a.eval.json')
    """
    if folder is not None:
        return os.path.join(folder, name)
    return f"{os.path.expanduser(os.fspath(path)).rstrip('/')}.{name}"


#: (label, key, how it is written) of the closing table.
SHOWN = (
    ("clean CE", "clean_ce", "{:.4f}"),
    ("dictionary CE", "sae_ce", "{:.4f}"),
    ("mean-ablated CE", "mean_ce", "{:.4f}"),
    ("zero-ablated CE", "zero_ce", "{:.4f}"),
    ("loss recovered (mean)", "loss_recovered_mean", "{:.4f}"),
    ("loss recovered (zero)", "loss_recovered_zero", "{:.4f}"),
    ("KL", "kl", "{:.4f}"),
    ("FVU", "fvu", "{:.4f}"),
    ("explained variance", "explained_variance", "{:.4f}"),
    ("cosine", "cosine", "{:.4f}"),
    ("L0", "l0", "{:.2f}"),
    ("dead share", "dead_share", "{:.2%}"),
)


def print_numbers(name: str, numbers: dict[str, Any], where: str) -> None:
    """The closing table: a value and, where there is one, its standard error over documents."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{name}: {numbers.get('site', '')}"), show_header=False)
    errors = numbers.get("standard_error") or {}
    for label, key, form in SHOWN:
        if numbers.get(key) is not None:
            error = f" ± {form.format(errors[key])}" if errors.get(key) is not None else ""
            table.add_row(label, form.format(numbers[key]) + error)
    if "rows" in numbers:
        tokens = (
            f", {numbers['ce_tokens']:,} tokens of {numbers['ce_documents']:,} documents"
            if "ce_tokens" in numbers
            else ""
        )
        table.add_row("measured on", f"{numbers['rows']:,} {numbers.get('split', '')} rows{tokens}")
    table.add_row("written to", escape(where))
    Console().print(table)
