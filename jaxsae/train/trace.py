"""A profiler trace of chosen steps, for TensorBoard or Perfetto."""

import os

import jax

_reasons_against: list[str] = []


def forbid(reason: str) -> None:
    """No trace is recorded in this process from here on; `reason` is told where one was asked for.

    The profiler asks every library of a device that the process has loaded, and one without its device makes it crash.
    """
    _reasons_against.append(reason)


class Trace:
    """Records steps first .. first + steps - 1 of a run into a folder.

    Args:
        folder: where to; nothing is recorded if None.
        first: the step (from 1 on) with which the trace begins; None for no trace.
        steps: how many.
        shown: what the folder is called; its path, if left out.
    """

    def __init__(self, folder: str | os.PathLike | None, first: int | None, steps: int, shown: str = ""):
        self._folder, self._first, self._steps = folder, first, steps
        self._shown = shown or os.fspath(folder or "")
        self._on = False

    def before(self, step: int) -> None:
        """Called before each step with its number."""
        if self._folder is not None and step == self._first and not _reasons_against:
            jax.profiler.start_trace(os.fspath(self._folder))
            self._on = True

    def after(self, step: int, done: jax.Array) -> str:
        """Called after each step; waits for `done` when the trace ends.  Tells once where it lies or why not."""
        if _reasons_against and self._folder is not None and step == self._first:
            return f"no profiler trace: {_reasons_against[0]}"
        if not self._on or self._first is None or step < self._first + self._steps - 1:
            return ""
        done.block_until_ready()
        self.close()
        return f"profiler trace of steps {self._first} to {step} in {self._shown!r}"

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
