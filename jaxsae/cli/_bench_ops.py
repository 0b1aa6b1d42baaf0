"""The ops that `jaxsae bench kernels` measures: a call of each, forward and backward, and what it cannot do without."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxsae import kernels
from jaxsae.cli._bench_shapes import Shape
from jaxsae.kernels import _dispatch
from jaxsae.kernels.adam.api import IMPLEMENTATIONS as ADAM
from jaxsae.kernels.adam.api import sizes
from jaxsae.kernels.decode_residual_sddmm.api import IMPLEMENTATIONS as RESIDUAL
from jaxsae.kernels.encode_topk.api import IMPLEMENTATIONS as ENCODE
from jaxsae.kernels.keep_best.api import IMPLEMENTATIONS as KEEP_BEST
from jaxsae.kernels.nested.api import IMPLEMENTATIONS as NESTED
from jaxsae.kernels.path.api import IMPLEMENTATIONS as PATH
from jaxsae.kernels.sparse_adam.api import IMPLEMENTATIONS as ROW_STEP
from jaxsae.kernels.sparse_decode.api import IMPLEMENTATIONS as DECODE
from jaxsae.kernels.sparse_grad.api import IMPLEMENTATIONS as ROW_SUMS
from jaxsae.kernels.topk.api import IMPLEMENTATIONS as TOPK
from jaxsae.kernels.topk_mask.api import IMPLEMENTATIONS as MASK

#: Levels that the op of that kind is measured with, as many as a Matryoshka dictionary has by default.
LEVELS = 5


@dataclasses.dataclass(frozen=True)
class Op:
    """One op at one shape.

    Attributes:
        available: its implementations.
        axes: sizes by axis letter, as the dispatch table keeps them.
        make: a call, ready to be timed, from the name of an implementation.
        least_bytes: what forward and backward must read and write beside the encoder product: tables of gradients once,
            rows once per entry where entries choose them, rows of the batch once.
        products: encoder products it contains.
        dtype: of its operands where that is not the one asked for, as the dispatch table keeps it.
    """

    available: _dispatch.Available
    axes: dict[str, int]
    make: Callable[[str], Callable[[], Any]]
    least_bytes: int
    products: int = 0
    dtype: str = ""

    def floor(self, product: float, bytes_per_second: float) -> float:
        """Seconds that the op cannot beat, from those of the bare product and the bandwidth.

        Example:
            >>> Op({}, {}, str, least_bytes=300, products=1).floor(0.5, 100.0)
            3.5
        """
        return self.products * product + self.least_bytes / bytes_per_second


def rows(shape: Shape, dtype: Any) -> tuple[Any, ...]:
    """Random rows, matrix [D, S], codes and indices of the shape."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (shape.batch_size, shape.d_in), jnp.float32).astype(dtype)
    W = (jax.random.normal(keys[1], (shape.d_in, shape.d_sae)) / shape.d_in**0.5).astype(dtype)
    values = jnp.abs(jax.random.normal(keys[2], (shape.batch_size, shape.k)))
    return x, W, values, jax.random.randint(keys[3], values.shape, 0, shape.d_sae)


def _gradient(loss: Callable, argnums: tuple[int, ...], *args: Any) -> Callable[[], Any]:
    import jax

    run = jax.jit(jax.grad(loss, argnums=argnums))
    return lambda: run(*args)


def _encode_topk(shape: Shape, dtype: Any) -> Op:
    import jax.numpy as jnp

    x, W, *_ = rows(shape, dtype)
    b, b_pre, scale = jnp.zeros(shape.d_sae), jnp.zeros(shape.d_in), jnp.ones(shape.d_sae)
    dead = jnp.zeros(shape.d_sae, bool)

    def make(name: str) -> Callable[[], Any]:
        def loss(W, b, b_pre, x):
            values = kernels.encode_topk(x, W, b, b_pre, scale, dead, shape.k, implementation=name)[0]
            return jnp.sum(values**2)

        return _gradient(loss, (0, 1, 2), W, b, b_pre, x)

    axes = {"B": shape.batch_size, "D": shape.d_in, "S": shape.d_sae, "K": shape.k}
    return Op(ENCODE, axes, make, least_bytes=W.nbytes + x.nbytes, products=1)


def _sparse_decode(shape: Shape, dtype: Any) -> Op:
    import jax.numpy as jnp

    x, W, values, indices = rows(shape, dtype)
    atoms = W.T

    def make(name: str) -> Callable[[], Any]:
        def loss(values, atoms, indices, x):
            return jnp.sum((kernels.sparse_decode(values, indices, atoms, implementation=name) - x) ** 2)

        return _gradient(loss, (0, 1), values, atoms, indices, x)

    axes = {"B": shape.batch_size, "E": shape.d_in, "S": shape.d_sae, "K": shape.k}
    # The gradient of the reconstruction depends on all of it, so the atoms are fetched again for that of the codes.
    gathered = 2 * shape.k * x.nbytes
    return Op(DECODE, axes, make, least_bytes=gathered + W.nbytes + 2 * x.nbytes)


def _decode_residual_sddmm(shape: Shape, dtype: Any) -> Op:
    import jax.numpy as jnp

    x, W, values, indices = rows(shape, dtype)
    atoms, e0 = W.T, x.astype(jnp.float32)

    def make(name: str) -> Callable[[], Any]:
        def loss(values, atoms, indices, e0):
            return jnp.sum(kernels.decode_residual_sddmm(values, indices, atoms, e0, implementation=name)[0])

        return _gradient(loss, (0, 1), values, atoms, indices, e0)

    axes = {"B": shape.batch_size, "K": shape.k, "S": shape.d_sae, "E": shape.d_in}
    return Op(RESIDUAL, axes, make, least_bytes=shape.k * x.nbytes + W.nbytes + 3 * e0.nbytes)


def _sparse_grad(shape: Shape, dtype: Any) -> Op:
    import jax

    x, _, values, indices = rows(shape, dtype)

    def make(name: str) -> Callable[[], Any]:
        run = jax.jit(lambda v, i, rows: kernels.sparse_grad(v, i, rows, shape.d_sae, implementation=name))
        return lambda: run(values, indices, x)

    axes = {"B": shape.batch_size, "K": shape.k, "S": shape.d_sae, "E": shape.d_in}
    return Op(
        ROW_SUMS, axes, make, least_bytes=4 * shape.d_sae * shape.d_in + x.nbytes + values.nbytes + indices.nbytes
    )


def _topk(shape: Shape, dtype: Any) -> Op:
    import jax

    x = jax.random.normal(jax.random.key(0), (shape.batch_size, shape.d_sae)).astype(dtype)

    def make(name: str) -> Callable[[], Any]:
        run = jax.jit(lambda x: kernels.topk(x, shape.k, implementation=name))
        return lambda: run(x)

    axes = {"B": shape.batch_size, "S": shape.d_sae, "K": shape.k}
    return Op(TOPK, axes, make, least_bytes=x.nbytes + 8 * shape.batch_size * shape.k)


def _topk_mask(shape: Shape, dtype: Any) -> Op:
    import jax

    x = jax.random.normal(jax.random.key(0), (shape.batch_size, shape.d_sae)).astype(dtype)

    def make(name: str) -> Callable[[], Any]:
        run = jax.jit(lambda x: kernels.topk_mask(x, shape.k, implementation=name))
        return lambda: run(x)

    return Op(MASK, {"B": shape.batch_size, "S": shape.d_sae}, make, least_bytes=x.nbytes + x.size)


def _keep_best(shape: Shape, dtype: Any) -> Op:
    """Of all latents; a list of candidates is shorter."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (shape.batch_size, shape.d_sae)).astype(dtype)
    count = jnp.int32(shape.batch_size * shape.k)

    def make(name: str) -> Callable[[], Any]:
        run = jax.jit(lambda x, count: kernels.keep_best(x, count, latents=True, implementation=name))
        return lambda: run(x, count)

    return Op(KEEP_BEST, {"B": shape.batch_size, "C": shape.d_sae}, make, least_bytes=x.nbytes + x.size)


def _path(shape: Shape, dtype: Any) -> Op:
    import jax.numpy as jnp

    x, W, values, indices = rows(shape, dtype)
    atoms, e0, main = W.T, x.astype(jnp.float32), jnp.full(len(x), shape.k, jnp.int32)

    def make(name: str) -> Callable[[], Any]:
        def loss(values, atoms, indices, e0):
            return jnp.sum(kernels.path(values, indices, atoms, e0, main, implementation=name)[0])

        return _gradient(loss, (0, 1), values, atoms, indices, e0)

    axes = {"B": shape.batch_size, "K": shape.k, "S": shape.d_sae, "E": shape.d_in}
    return Op(PATH, axes, make, least_bytes=2 * shape.k * x.nbytes + W.nbytes + 3 * e0.nbytes)


def _nested(shape: Shape, dtype: Any) -> Op:
    import jax.numpy as jnp

    x, W, values, indices = rows(shape, dtype)
    atoms, e0, main = W.T, x.astype(jnp.float32), jnp.full(len(x), LEVELS - 1, jnp.int32)
    level = jnp.minimum(indices * LEVELS // shape.d_sae, LEVELS - 1)

    def make(name: str) -> Callable[[], Any]:
        def loss(values, atoms, indices, e0):
            return jnp.sum(kernels.nested(values, indices, level, atoms, e0, main, LEVELS, implementation=name)[0])

        return _gradient(loss, (0, 1), values, atoms, indices, e0)

    axes = {"B": shape.batch_size, "K": shape.k, "S": shape.d_sae, "E": shape.d_in, "R": LEVELS}
    return Op(NESTED, axes, make, least_bytes=2 * shape.k * x.nbytes + W.nbytes + 3 * e0.nbytes)


def _sparse_adam(shape: Shape, dtype: Any) -> Op:
    import jax.numpy as jnp

    x, _, values, indices = rows(shape, dtype)
    tables = [jnp.zeros((shape.d_sae, shape.d_in)) for _ in range(3)]

    def make(name: str) -> Callable[[], Any]:
        def step(W, mu, nu, values, indices, x):
            lr, count = jnp.float32(1e-3), jnp.int32(1)
            return kernels.sparse_adam(W, mu, nu, values, indices, x, lr, count, implementation=name)

        return _in_place(step, tables, values, indices, x)

    axes = {"B": shape.batch_size, "K": shape.k, "S": shape.d_sae, "E": shape.d_in}
    moved = 24 * shape.d_sae * shape.d_in  # both moments and the weights, read and written
    return Op(ROW_STEP, axes, make, least_bytes=moved + x.nbytes + values.nbytes + indices.nbytes)


def _adam(shape: Shape, dtype: Any) -> Op:
    """On the decoder, whose rows keep their norm; f32 whatever the rows of the batch are."""
    import jax.numpy as jnp

    W = jnp.full((shape.d_sae, shape.d_in), shape.d_in**-0.5)
    tables, g = [W, jnp.zeros_like(W), jnp.zeros_like(W)], jnp.ones_like(W)

    def make(name: str) -> Callable[[], Any]:
        def step(W, mu, nu, g):
            scalars = jnp.float32(1e-3), jnp.int32(1), jnp.float32(1.0)
            return kernels.adam(W, mu, nu, g, *scalars, unit=True, implementation=name)

        return _in_place(step, tables, g)

    return Op(ADAM, sizes(W, unit=True), make, least_bytes=28 * W.size, dtype="float32")


def _in_place(step: Callable, tables: list[Any], *args: Any) -> Callable[[], Any]:
    """A call that moves the tables, which all implementations share, in their own memory."""
    import jax

    run = jax.jit(step, donate_argnums=(0, 1, 2))

    def call() -> Any:
        tables[:] = run(*tables, *args)
        return tables

    return call


#: Op -> maker at a shape and dtype.
OPS: dict[str, Callable[[Shape, Any], Op]] = {
    "encode_topk": _encode_topk,
    "decode_residual_sddmm": _decode_residual_sddmm,
    "sparse_decode": _sparse_decode,
    "sparse_grad": _sparse_grad,
    "sparse_adam": _sparse_adam,
    "adam": _adam,
    "path": _path,
    "nested": _nested,
    "topk": _topk,
    "topk_mask": _topk_mask,
    "keep_best": _keep_best,
}
