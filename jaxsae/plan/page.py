"""A plan as a page of text."""

from collections.abc import Iterator, Sequence

from jaxsae.plan.plan import Plan
from jaxsae.plan.setting import mesh_text
from jaxsae.train.room import ROOM

GIB = 2**30


def page(plan: Plan, command: str = "") -> str:
    """The page in Markdown.

    Args:
        plan: what was found.
        command: that made it, to be quoted.
    """
    return "\n".join(
        [*_head(plan, command), *_memory(plan), *_advice(plan), *_traffic(plan), *_time(plan), *_arrays(plan)]
    )


def _head(plan: Plan, command: str) -> Iterator[str]:
    m, recipe = plan.measured, plan.recipe
    runs = f", {plan.runs} runs together," if plan.runs > 1 else ""
    yield f"# {recipe.name}: {recipe.d_in:,} to {recipe.d_sae:,} latents{runs} on {plan.target}"
    yield ""
    if command:
        yield f"Made by `{command}`; nothing ran on a device.  "
    yield "Versions: " + ", ".join(f"{k} {v}" for k, v in plan.versions.items()) + f"; compiled in {m.seconds:.0f} s."
    yield ""
    yield _verdict(plan)
    yield ""
    read = f", which all {plan.runs} runs of the sweep read" if plan.runs > 1 else ""
    yield f"Mesh {mesh_text(plan.mesh)}: {plan.reason}.  Batch of {plan.rows:,} rows{read}, {plan.steps:,} steps."
    yield ""


def _verdict(plan: Plan) -> str:
    m, each = plan.measured, f"on each of {plan.devices} devices" if plan.devices > 1 else "on one device"
    if plan.limit and not plan.chip.memory:
        each += ", out of the machine's memory" if plan.devices == 1 else ", out of its share of the machine's memory"
    if m.fits is None:
        return f"**no limit known**: {gib(m.peak)} GiB at the peak {each}; compare that with what it has."
    if m.peak is None:
        more = f"more than {gib(plan.limit)} GiB" if plan.limit else "more than there is"
        return f"**does not fit**: {more} at the peak {each}; how much is unknown, as the compiler does not say."
    limit = f" of {gib(plan.limit)}" if plan.limit else ""
    return f"**{'fits' if m.fits else 'does not fit'}**: {gib(m.peak)}{limit} GiB at the peak {each}."


def _memory(plan: Plan) -> Iterator[str]:
    m = plan.measured
    yield from _table("Memory per device", ("part", "GiB"), [
        *((name, gib(size, 3)) for name, size in m.parts.items()),
        ("temporaries at the peak", gib(m.temporaries, 3)),
        ("peak", gib(m.peak, 3)),
    ])  # fmt: skip
    one = " (of one run at a time)" if plan.runs > 1 else ""
    size = gib(plan.exported, 3)
    yield (
        f"Host memory for the exported dictionary, in process 0 at the end of the run{one}: {size} GiB, three times as "
        f"much behind a URL; where that is more than {100 * ROOM:.0f} % of its machine's, it stays in the checkpoint."
    )
    yield ""
    if m.why:
        yield f"The compiler said: {m.why}"
        yield ""


def _advice(plan: Plan) -> Iterator[str]:
    if plan.advice:
        rows = [(a.change, "fits" if a.fits else "does not fit", gib(a.peak)) for a in plan.advice]
        yield from _table("What to change (each compiled)", ("change", "verdict", "peak GiB"), rows)


def _traffic(plan: Plan) -> Iterator[str]:
    m = plan.measured
    if m.fits is False or plan.devices == 1:
        return
    rows = [
        (
            c.kind,
            c.shape if len(c.shape) < 60 else c.shape[:57] + "...",
            str(c.devices),
            f"{c.received / 1e6:.3f}",
            c.where if c.times == 1 else f"{c.where}, {c.times} times",
        )
        for c in sorted(m.collectives, key=lambda c: -c.received)
        if c.received >= 1000
    ]
    yield from _table("Collectives of the compiled program", ("kind", "result", "devices", "MB received", "when"), rows)
    loop = m.received("loop")
    turns = f", {loop / 1e6:.1f} MB per turn of loops that do not tell how many they take" if loop else ""
    yield (
        f"Received per device and step: {m.received('always') / 1e6:.1f} MB always, "
        f"{m.received('branch') / 1e6:.1f} MB more where a branch is taken (AuxK's, while latents are dead){turns}.  "
        "Bytes as a ring receives them; those under 1 kB are not listed."
    )
    yield ""


def _time(plan: Plan) -> Iterator[str]:
    step = plan.seconds
    if step is None:
        return
    rows = [(p.name, p.work, p.resource, f"{1000 * p.seconds:.2f}") for p in plan.parts]
    yield from _table("Least time of a step's parts", ("part", "work per device", "bound by", "ms"), rows)
    each, what = (f", each for all {plan.runs} runs", "sweep") if plan.runs > 1 else ("", "run")
    for name, seconds in (("at best, all resources at once", step[0]), ("one part after another", step[1])):
        hours = plan.steps * seconds / 3600
        yield (
            f"- {name}: {1000 * seconds:.1f} ms a step, {plan.rows / seconds:,.0f} tokens/s{each}; the {what} of "
            f"{plan.steps * plan.rows:,} tokens takes {hours:.2f} h, {hours * plan.devices:.1f} chip-hours."
        )
    yield ""
    yield (
        "These are bounds from data-sheet rates, not measurements: no part reaches its rate, small parts are left out, "
        "gathers of rows may be bound by the number of transfers rather than bytes, and AuxK's branch is counted as "
        "taken in the collectives only.  The compiler's own time estimate is not used, since it counts neither the "
        "passes of a selection nor custom kernels."
    )
    yield ""


def _arrays(plan: Plan) -> Iterator[str]:
    rows = [(n, s, d, p, f"{b / 2**20:.3f}") for n, s, d, p, b in plan.measured.arrays]
    yield from _table("Arrays kept from step to step", ("array", "shape", "dtype", "spread over", "MiB each"), rows)


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    for row in (head, ("---",) * len(head), *rows):
        yield "| " + " | ".join(row) + " |"
    yield ""


def gib(size: float | None, digits: int = 2) -> str:
    """Bytes in GiB, without the unit; "unknown" for None.

    Example:
        >>> gib(3 * 2**29), gib(2**20), gib(None)
        ('1.50', '<0.01', 'unknown')
    """
    if size is None:
        return "unknown"
    text = f"{size / GIB:.{digits}f}"
    return f"<{10**-digits:.{digits}f}" if size and not float(text) else text
