"""Progress of work that goes through stages: one bar a stage on a terminal, one line a stage elsewhere."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from jaxsae.evals.reconstruction import Progress


@contextlib.contextmanager
def stages(stream: Any = None) -> Iterator[Progress]:
    """A `progress(stage, done, total)` that shows itself on stderr.

    Example:
        >>> import io
        >>> with stages(io.StringIO()) as progress:
        ...     progress("reconstruction", 10, 10)
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(file=stream or sys.stderr)
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bars = Bars(*columns, console=console, disable=not (console.is_terminal or console.is_jupyter))
    tasks: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in tasks or bars.tasks[tasks[stage]].completed > done:
            tasks[stage] = bars.add_task(stage, total=total)
            if bars.disable:
                console.print(f"{stage} ...")
        bars.update(tasks[stage], completed=done, total=total)

    with bars:
        yield progress
