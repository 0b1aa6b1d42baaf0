"""The ops that `jaxsae bench kernels` measures: a call of each, forward and backward, and what it cannot do without."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxsae import kernels
from jaxsae.cli._bench_shapes import Shape
from jaxsae.kernels import _dispatch
from jaxsae.kernels.decode_residual_sddmm.api import IMPLEMENTATIONS as RESIDUAL
from jaxsae.kernels.encode_topk.api import IMPLEMENTATIONS as ENCODE
from jaxsae.kernels.sparse_decode.api import IMPLEMENTATIONS as DECODE
from jaxsae.kernels.sparse_grad.api import IMPLEMENTATIONS as ROW_SUMS
from jaxsae.kernels.topk.api import IMPLEMENTATIONS as TOPK


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
    """

    available: _dispatch.Available
    axes: dict[str, int]
    make: Callable[[str], Callable[[], Any]]
    least_bytes: int
    products: int = 0

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


#: Op -> maker at a shape and dtype.
OPS: dict[str, Callable[[Shape, Any], Op]] = {
    "encode_topk": _encode_topk,
    "decode_residual_sddmm": _decode_residual_sddmm,
    "sparse_decode": _sparse_decode,
    "sparse_grad": _sparse_grad,
    "topk": _topk,
}
