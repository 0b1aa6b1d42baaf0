"""The progress of a run on a screen: a bar where there is a terminal or a notebook, plain lines elsewhere."""

import sys
import time
from typing import Any

from jaxsae.train.logs import Record

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A `Writer` that shows tokens per second, FVU, L0, dead share and the time left.

    Args:
        steps: updates of the whole run.
        start: updates done before this session.
        stream: where it is shown; None for stderr.
    """

    def __init__(self, steps: int, start: int = 0, stream: Any = None):
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self.steps = steps
        self._stream = stream or sys.stderr
        self._before: tuple[float, float] | None = None
        self._text, self._heldout, self._shown, self._shown_at = "", "", "", 0.0
        console = Console(file=self._stream)
        self._bar: Any = None
        if console.is_terminal or console.is_jupyter:
            columns = (TextColumn("train"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
            self._bar = Bar(*columns, console=console, auto_refresh=False)
            self._task = self._bar.add_task("train", total=steps, completed=start, text="compiling")
            self._bar.start()

    def write(self, record: Record) -> None:
        if record["kind"] == "heldout":
            self._heldout = f"  held-out fvu {_number(record.get('fvu'))}"
        elif record["kind"] == "train":
            self._text = self._describe(record)
        else:
            self._remark(record["event"])
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], text=self._text + self._heldout, refresh=True)
        elif time.monotonic() - self._shown_at > SECONDS_BETWEEN_LINES:
            self._print()

    def _remark(self, text: str) -> None:
        """Events are shown at once: they are rare, and somebody may want to act."""
        if self._bar is not None:
            self._bar.console.print("train  " + text, markup=False)
        else:
            print("train  " + text, file=self._stream, flush=True)

    def _print(self) -> None:
        text = self._text + self._heldout
        if text and text != self._shown:
            print("train  " + text, file=self._stream, flush=True)
        self._shown, self._shown_at = text, time.monotonic()

    def _describe(self, record: Record) -> str:
        step, dead = record["step"], record.get("dead_share")
        parts = [f"{step:,}/{self.steps:,}", *self._speed(step, record["tokens"], record["time"])]
        parts += [f"fvu {_number(record.get('fvu'))}", f"l0 {_number(record.get('l0'))}"]
        parts += [f"dead {dead:.1%}"] if dead is not None else []
        return "  ".join(parts)

    def _speed(self, step: int, tokens: int, seconds: float) -> list[str]:
        """Tokens per second and time left, from a point half-way back, so that no single interval decides.

        Nothing is said of the first interval: the compilation is in it.
        """
        before, self._before = self._before, (step, seconds)
        if before is None or step <= before[0] or seconds <= before[1]:
            return []
        steps, took = step - before[0], seconds - before[1]
        self._before = ((before[0] + step) / 2, (before[1] + seconds) / 2)
        left = (self.steps - step) * took / steps
        return [f"{_large(tokens / step * steps / took)} tokens/s", f"{_clock(left)} left"]

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._print()


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _large(value: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.0f}"


def _clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"
