"""`jaxsae bench kernels`: every op in every implementation that runs here, and the table the dispatch reads."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, Literal

from jaxsae import kernels
from jaxsae.cli._bench_shapes import Shape, shape_of
from jaxsae.cli._bench_timing import environment, in_turn, spread, streaming_bytes, timed
from jaxsae.errors import ConfigError, closest
from jaxsae.kernels import _dispatch
from jaxsae.kernels.decode_residual_sddmm.api import IMPLEMENTATIONS as RESIDUAL
from jaxsae.kernels.encode_topk.api import IMPLEMENTATIONS as ENCODE
from jaxsae.kernels.sparse_decode.api import IMPLEMENTATIONS as DECODE
from jaxsae.kernels.sparse_grad.api import IMPLEMENTATIONS as ROW_SUMS
from jaxsae.kernels.topk.api import IMPLEMENTATIONS as TOPK
from jaxsae.train.memory import keep_freed_memory


@dataclasses.dataclass(frozen=True)
class BenchKernels:
    """Measure the ops of the training step, forward and backward, one implementation beside the other.

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
        tune: write the times into the table that `implementation=None` reads on this kind of device.
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
        for op in self.ops:
            if op not in OPS:
                raise ConfigError(f"bench kernels: no op {op!r}{closest(op, OPS)}")
        ops = {op: OPS[op](shape, jnp.dtype(self.dtype)) for op in self.ops or OPS}
        calls: dict[str, Callable[[], float]] = {}
        for op, (axes, available, make) in ops.items():
            for name in self._named(op, available, axes):
                calls[f"{op} {name}"] = timed(make(name))
        streaming, moved = streaming_bytes()
        seconds = in_turn({**calls, "matmul": timed(_matmul(shape, self.dtype)), "streaming": streaming}, self.repeats)
        result = {
            "shape": dataclasses.asdict(shape),
            "dtype": self.dtype,
            "seconds": seconds,
            "bytes_per_second": moved / seconds["streaming"]["median"],
            "environment": environment(),
            "settings": dataclasses.asdict(self),
        }
        _print(result)
        if self.tune:
            write_table({op: found[0] for op, found in ops.items()}, self.dtype, seconds)
        if self.out:
            pathlib.Path(self.out).write_text(json.dumps(result, indent=1))
        return result

    def _named(self, op: str, available: _dispatch.Available, axes: dict[str, int]) -> list[str]:
        """What to measure: the one asked for, which must run here, or all that do."""
        if self.implementation:
            _dispatch.choose(op, self.implementation, available, axes, self.dtype)
            return [self.implementation]
        platform = _dispatch.device()[0]
        whole = {n: i if isinstance(i, _dispatch.Implementation) else None for n, i in available.items()}
        can = [n for n, i in whole.items() if i is None or i.objection(platform, axes, self.dtype) is None]
        return [n for n in can if n != "reference"]  # written to be read, not to be fast


def _rows(shape: Shape, dtype: Any) -> tuple[Any, ...]:
    """Random rows, matrix [D, S], codes and indices of the shape."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (shape.batch_size, shape.d_in), jnp.float32).astype(dtype)
    W = (jax.random.normal(keys[1], (shape.d_in, shape.d_sae)) / shape.d_in**0.5).astype(dtype)
    values = jnp.abs(jax.random.normal(keys[2], (shape.batch_size, shape.k)))
    return x, W, values, jax.random.randint(keys[3], values.shape, 0, shape.d_sae)


def _matmul(shape: Shape, dtype: Any) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    x, W, *_ = _rows(shape, dtype)
    product = jax.jit(lambda x, W: jnp.dot(x, W, preferred_element_type=jnp.float32))
    return lambda: product(x, W)


def _encode_topk(shape: Shape, dtype: Any) -> tuple[dict[str, int], _dispatch.Available, Callable]:
    import jax
    import jax.numpy as jnp

    x, W, *_ = _rows(shape, dtype)
    b, b_pre, scale = jnp.zeros(shape.d_sae), jnp.zeros(shape.d_in), jnp.ones(shape.d_sae)
    dead = jnp.zeros(shape.d_sae, bool)

    def make(name: str) -> Callable[[], Any]:
        def loss(W, b, b_pre, x):
            values = kernels.encode_topk(x, W, b, b_pre, scale, dead, shape.k, implementation=name)[0]
            return jnp.sum(values**2)

        run = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        return lambda: run(W, b, b_pre, x)

    axes = {"B": shape.batch_size, "D": shape.d_in, "S": shape.d_sae, "K": shape.k}
    return axes, ENCODE, make


def _sparse_decode(shape: Shape, dtype: Any) -> tuple[dict[str, int], _dispatch.Available, Callable]:
    import jax
    import jax.numpy as jnp

    x, W, values, indices = _rows(shape, dtype)
    atoms = W.T

    def make(name: str) -> Callable[[], Any]:
        def loss(values, atoms, indices, x):
            return jnp.sum((kernels.sparse_decode(values, indices, atoms, implementation=name) - x) ** 2)

        run = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return lambda: run(values, atoms, indices, x)

    axes = {"B": shape.batch_size, "E": shape.d_in, "S": shape.d_sae, "K": shape.k}
    return axes, DECODE, make


def _decode_residual_sddmm(shape: Shape, dtype: Any) -> tuple[dict[str, int], _dispatch.Available, Callable]:
    import jax
    import jax.numpy as jnp

    x, W, values, indices = _rows(shape, dtype)
    atoms, rows = W.T, x.astype(jnp.float32)

    def make(name: str) -> Callable[[], Any]:
        def loss(values, atoms, indices, rows):
            return jnp.sum(kernels.decode_residual_sddmm(values, indices, atoms, rows, implementation=name)[0])

        run = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return lambda: run(values, atoms, indices, rows)

    axes = {"B": shape.batch_size, "K": shape.k, "S": shape.d_sae, "E": shape.d_in}
    return axes, RESIDUAL, make


def _sparse_grad(shape: Shape, dtype: Any) -> tuple[dict[str, int], _dispatch.Available, Callable]:
    import jax

    x, _, values, indices = _rows(shape, dtype)

    def make(name: str) -> Callable[[], Any]:
        run = jax.jit(lambda v, i, rows: kernels.sparse_grad(v, i, rows, shape.d_sae, implementation=name))
        return lambda: run(values, indices, x)

    axes = {"B": shape.batch_size, "K": shape.k, "S": shape.d_sae, "E": shape.d_in}
    return axes, ROW_SUMS, make


def _topk(shape: Shape, dtype: Any) -> tuple[dict[str, int], _dispatch.Available, Callable]:
    import jax

    x = jax.random.normal(jax.random.key(0), (shape.batch_size, shape.d_sae)).astype(dtype)

    def make(name: str) -> Callable[[], Any]:
        run = jax.jit(lambda x: kernels.topk(x, shape.k, implementation=name))
        return lambda: run(x)

    return {"B": shape.batch_size, "S": shape.d_sae, "K": shape.k}, TOPK, make


#: Op -> (axes of the call, implementations, maker of a call by name), at a shape and dtype.
OPS: dict[str, Callable] = {
    "encode_topk": _encode_topk,
    "decode_residual_sddmm": _decode_residual_sddmm,
    "sparse_decode": _sparse_decode,
    "sparse_grad": _sparse_grad,
    "topk": _topk,
}


def write_table(axes: dict[str, dict[str, int]], dtype: str, seconds: dict[str, dict[str, float]]) -> pathlib.Path:
    """Puts the medians of these calls into the table of this kind of device; others in it stay."""
    path = _dispatch.table_path(_dispatch.device()[1])
    whole = json.loads(path.read_text()) if path.exists() else {"ops": {}}
    for op, sizes in axes.items():
        times = {n.split()[1]: round(1e3 * s["median"], 3) for n, s in seconds.items() if n.startswith(op + " ")}
        rows = [r for r in whole["ops"].get(op, []) if (r["shape"], r["dtype"]) != (sizes, dtype)]
        whole["ops"][op] = [*rows, {"shape": sizes, "dtype": dtype, "milliseconds": times}]
    whole["environment"] = environment()
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")
    _dispatch.table.cache_clear()
    return path


def _print(result: dict[str, Any]) -> None:
    import rich.console
    from rich.table import Table

    title = f"ops, {result['shape']}, {result['dtype']}, {result['environment']['device']}"
    table = Table("op", "implementation", "ms (median)", "lowest", "highest", "of the matmul", title=title)
    matmul = result["seconds"]["matmul"]["median"]
    for label, s in result["seconds"].items():
        op, _, name = label.partition(" ")
        times = [f"{1e3 * s[key]:.2f}" for key in ("median", "min", "max")]
        table.add_row(op, name, *times, f"{s['median'] / matmul:.2f}")
    rich.console.Console(stderr=True).print(table)
