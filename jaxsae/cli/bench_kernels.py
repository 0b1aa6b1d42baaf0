"""`jaxsae bench kernels`: every op in every implementation that runs here, and the table the dispatch reads."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, Literal

from jaxsae.cli._bench_ops import OPS, rows
from jaxsae.cli._bench_shapes import Shape, shape_of
from jaxsae.cli._bench_timing import environment, in_turn, spread, streaming_bytes, timed
from jaxsae.cli._results import check_place, write_result
from jaxsae.errors import ConfigError, closest
from jaxsae.kernels import _dispatch
from jaxsae.train.memory import keep_freed_memory


@dataclasses.dataclass(frozen=True)
class BenchKernels:
    """Measure the ops that training is made of, forward and backward, one implementation beside the other.

    Attributes:
        shape: tiny, smol, mid, A, B or C.
        batch_size: rows per step, in place of the named shape's.
        d_in: width of the rows, likewise.
        d_sae: latents, likewise.
        k: active latents per row, likewise.
        dtype: of rows and matrices.
        ops: ops to measure; all of them if empty.
        implementation: measure this one alone; all that run here if empty.
        repeats: rounds.
        tune: write the times into the table that `implementation=None` reads on this kind of device; not of one
            implementation alone.
        out: where to write the result as JSON; nowhere if empty.
    """

    shape: str = "smol"
    batch_size: int | None = None
    d_in: int | None = None
    d_sae: int | None = None
    k: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    ops: tuple[str, ...] = ()
    implementation: str = ""
    repeats: int = 5
    tune: bool = False
    out: str = ""

    def run(self) -> dict[str, Any]:
        """Measures and prints a table; returns what the JSON holds."""
        import jax.numpy as jnp

        shape = shape_of(self.shape, self.batch_size, self.d_in, self.d_sae, self.k)
        keep_freed_memory()
        spread([1.0] * self.repeats)  # refuses 0 before anything is compiled
        if self.tune and self.implementation:  # alone in its row it would be the fastest, whatever others take
            raise ConfigError("bench kernels: --tune compares implementations; leave out --implementation or --tune")
        check_place(self.out)
        if self.tune:
            check_place(str(_dispatch.table_path(_dispatch.device()[1])))
        for name in self.ops:
            if name not in OPS:
                raise ConfigError(f"bench kernels: no op {name!r}{closest(name, OPS)}")
        ops = {name: OPS[name](shape, jnp.dtype(self.dtype)) for name in self.ops or OPS}
        calls: dict[str, Callable[[], float]] = {}
        for name, op in ops.items():
            for implementation in self._named(name, op.available, op.axes, op.dtype or self.dtype):
                calls[f"{name} {implementation}"] = timed(op.make(implementation))
        streaming, moved = streaming_bytes()
        seconds = in_turn({**calls, "matmul": timed(_matmul(shape, self.dtype)), "streaming": streaming}, self.repeats)
        bandwidth, product = moved / seconds["streaming"]["median"], seconds["matmul"]["median"]
        result = {
            "shape": dataclasses.asdict(shape),
            "dtype": self.dtype,
            "seconds": seconds,
            "bytes_per_second": bandwidth,
            "floor": {name: op.floor(product, bandwidth) for name, op in ops.items()},
            "environment": environment(),
            "settings": dataclasses.asdict(self),
        }
        _print(result)
        if self.tune:
            write_table({name: (op.axes, op.dtype or self.dtype) for name, op in ops.items()}, seconds)
        write_result(self.out, result)
        return result

    def _named(self, op: str, available: _dispatch.Available, axes: dict[str, int], dtype: str) -> list[str]:
        """What to measure: the one asked for, which must run here, or all that do."""
        if self.implementation:
            _dispatch.choose(op, self.implementation, available, axes, dtype)
            return [self.implementation]
        platform = _dispatch.device()[0]
        whole = {n: i if isinstance(i, _dispatch.Implementation) else None for n, i in available.items()}
        can = [n for n, i in whole.items() if i is None or i.objection(platform, axes, dtype) is None]
        return [n for n in can if n != "reference"]  # written to be read, not to be fast


def _matmul(shape: Shape, dtype: Any) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    x, W, *_ = rows(shape, dtype)
    product = jax.jit(lambda x, W: jnp.dot(x, W, preferred_element_type=jnp.float32))
    return lambda: product(x, W)


def write_table(calls: dict[str, tuple[dict[str, int], str]], seconds: dict[str, dict[str, float]]) -> pathlib.Path:
    """Puts the medians of these calls into the table of this kind of device; others in it stay.

    Args:
        calls: op -> its sizes and dtype.
        seconds: "op implementation" -> spread of its times.
    """
    path = _dispatch.table_path(_dispatch.device()[1])
    whole = json.loads(path.read_text()) if path.exists() else {"ops": {}}
    for op, (sizes, dtype) in calls.items():
        times = {n.split()[1]: round(1e3 * s["median"], 3) for n, s in seconds.items() if n.startswith(op + " ")}
        rows = [r for r in whole["ops"].get(op, []) if (r["shape"], r["dtype"]) != (sizes, dtype)]
        whole["ops"][op] = [*rows, {"shape": sizes, "dtype": dtype, "milliseconds": times}]
    whole["environment"] = environment()
    write_result(str(path), whole)
    _dispatch.table.cache_clear()
    return path


def _print(result: dict[str, Any]) -> None:
    import rich.console
    from rich.box import SIMPLE
    from rich.table import Table

    title = f"ops, {result['shape']}, {result['dtype']}, {result['environment']['device']}"
    table = Table("op", "by", "ms", "lowest", "highest", "floor", "ratio", title=title, box=SIMPLE)
    for label, s in result["seconds"].items():
        op, _, name = label.partition(" ")
        times = [f"{1e3 * s[key]:.2f}" for key in ("median", "min", "max")]
        floor = result["floor"].get(op)
        beside = ("", "") if floor is None else (f"{1e3 * floor:.2f}", f"{s['median'] / floor:.2f}")
        table.add_row(op, name, *times, *beside)
    console = rich.console.Console(stderr=True)
    console.print(table)
    console.print(
        f"ms: median; floor: the bare encoder product where the op holds one, and the bytes it must move at "
        f"{result['bytes_per_second'] / 1e9:.1f} GB/s"
    )
