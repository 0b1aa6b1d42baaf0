"""The TPU kernels over rows, interpreted on a CPU with race detection, against the plain references.

Interpreted memory starts as NaN, so a result that read what no copy filled could not be right.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsae import kernels
from jaxsae.errors import ConfigError
from jaxsae.kernels._dispatch import compiling_for
from jaxsae.kernels.decode_residual_sddmm import api as residual_api
from jaxsae.kernels.sparse_adam import reference as adam_reference
from jaxsae.kernels.sparse_adam import xla as adam_xla
from jaxsae.kernels.sparse_decode import api as decode_api
from jaxsae.kernels.sparse_decode import reference as decode_reference
from jaxsae.kernels.sparse_grad import reference as grad_reference

pytestmark = pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="the Pallas TPU kernels need jax 0.10")

if jax.__version_info__ >= (0, 10):
    from jax.experimental.pallas import tpu as pltpu

    from jaxsae.kernels.sparse_adam import pallas_tpu as adam
    from jaxsae.kernels.sparse_decode import pallas_tpu as decode
    from jaxsae.kernels.sparse_decode import sparsecore
    from jaxsae.kernels.sparse_grad import pallas_tpu as grad

    INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    FAST = pltpu.InterpretParams(uninitialized_memory="nan")


def no_race():
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call as machine

    return not machine.races.races_found


def inputs(batch, k, size, width, dtype=jnp.float32, top=None):
    """values, indices, table, rows; `top` bounds the indices, the first two entries of each row agree."""
    rng = np.random.default_rng(batch * k)
    indices = rng.integers(0, top or size, (batch, k))
    indices[:, 1:2] = indices[:, :1]
    make = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return make(batch, k), jnp.asarray(indices, jnp.int32), make(size, width).astype(dtype), make(batch, width)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max()))
    assert no_race()


slow = pytest.mark.slow  # the interpreter takes a millisecond per access of memory
SHAPES = [
    (3, 3, 9, 100, jnp.float32),  # nothing divides
    (2, 9, 16, 256, jnp.bfloat16),
    (2, 1, 8, 300, jnp.bfloat16),
    pytest.param(8, 8, 16, 128, jnp.float32, marks=slow),
    pytest.param(9, 17, 16, 256, jnp.bfloat16, marks=slow),  # a full step of the inner loop, then a short group
    pytest.param(3, 33, 40, 100, jnp.float32, marks=slow),  # two full steps
]


@pytest.mark.parametrize(("batch", "k", "size", "width", "dtype"), SHAPES)
def test_decode_dots_and_both_equal_the_reference(batch, k, size, width, dtype):
    values, indices, W, rows = inputs(batch, k, size, width, dtype)
    f32 = lambda a: a.astype(jnp.float32)  # noqa: E731
    y = decode_reference.sparse_decode(values, indices, W)
    dots = lambda g: jnp.einsum("be,bke->bk", g, f32(W[indices]))  # noqa: E731
    e, p = decode.decode_and_dots(values, indices, W, rows, interpret=INTERPRET)
    close(e, rows - y)
    close(p, dots(rows - y))
    close(decode.decode(values, indices, W, interpret=INTERPRET), y)
    close(decode.dots(rows, indices, W, interpret=INTERPRET), dots(rows))


@slow
def test_a_list_too_long_for_the_buffers_is_cut(monkeypatch):
    monkeypatch.setattr(decode, "BUFFER", 2 * 8 * 128 * 4)
    values, indices, W, rows = inputs(2, 11, 16, 128)
    y = decode_reference.sparse_decode(values, indices, W)
    e, p = decode.decode_and_dots(values, indices, W, rows, interpret=INTERPRET)
    close(e, rows - y)
    close(p, jnp.einsum("be,bke->bk", rows - y, W[indices]))


def test_tilings_respect_the_memories():
    for batch, k, width in [
        (8192, 32, 768),
        (4096, 64, 4096),
        (4096, 512, 16384),
        (1, 1, 128),
        (4096, 8, 512),
        (64, 9000, 128),
    ]:
        for parts in (1, 2):
            words = width // parts
            piece = decode._cuts(k, words)[0]
            t = decode.Tiling(batch, piece.stop - piece.start, words, parts, True, True)
            assert t.vmem < 60 << 20
            assert 4 * t.tokens * t.k * 2 < 512 << 10
            assert 2 <= t.slots <= t.tokens
            assert t.tokens % 8 == 0
            assert sum(w for _, w in t.chunks) == words


LOSSES = {
    "sse": lambda sse, e: jnp.sum(jnp.arange(1.0, 1.0 + len(sse)) * sse),
    "residual": lambda sse, e: jnp.sum(jnp.sin(e)),
    "both": lambda sse, e: jnp.sum(sse) + jnp.sum(jnp.abs(e) ** 1.5),
}
# The second list goes the way of XLA, which rounds the codes of long lists to bf16; those here are short.
ASSEMBLED = [(2, 3, 9, 100, jnp.float32), pytest.param(3, 3, 200, 300, jnp.bfloat16, marks=slow)]


@pytest.mark.usefixtures("tpu_interpreter")
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("batch", "k", "size", "width", "dtype"), ASSEMBLED)
def test_the_residual_as_it_is_assembled_has_the_gradients_of_the_reference(batch, k, size, width, dtype, loss, second):
    """The op that `implementation="pallas_tpu"` picks, its backward pass included, on kernels in the interpreter."""
    values, indices, W, e0 = inputs(batch, k, size, width, dtype)
    live = jnp.array(True)

    def run(op):
        def f(values, W, e0, others):
            sse, e, rows = op(values, indices, W, e0, (others, indices[:, ::-1], live) if second else None)
            return LOSSES[loss](sse, e) + (jnp.sum(rows**2) if second else 0.0), e

        return jax.jit(jax.value_and_grad(f, (0, 1, 2, 3), has_aux=True))(values, W, e0, 2 * values)

    found, expected = (
        run(residual_api.IMPLEMENTATIONS["pallas_tpu"].run),
        run(residual_api.IMPLEMENTATIONS["reference"]),
    )
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        # In bf16 the reference adds repeated rows after rounding each, a kernel before: two roundings apart.
        tolerance = 1e-5 if a.dtype == jnp.float32 else 2e-2
        a, e = (np.asarray(x, np.float32) for x in (a, e))
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance * np.abs(e).max())


@pytest.mark.usefixtures("tpu_interpreter")
@pytest.mark.parametrize("live", [None, True, False])
def test_the_decoding_as_it_is_assembled_has_the_gradients_of_the_reference(live):
    values, indices, W, g = inputs(2, 3, 9, 100)
    flag = None if live is None else jnp.array(live)

    def run(op):
        y, back = jax.vjp(lambda v, W: op(v, indices, W, flag), values, W)
        return y, *back(g)

    found, expected = run(decode_api.IMPLEMENTATIONS["pallas_tpu"].run), run(decode_api.IMPLEMENTATIONS["reference"])
    for a, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * float(jnp.abs(e).max()))


def check_drawn(batch, k, size, width, seed):
    """Whole numbers, so that sums are exact in any order: equal to numpy to the last bit."""
    rng = np.random.default_rng(seed)
    whole = lambda *shape: rng.integers(-4, 5, shape).astype(np.float64)  # noqa: E731
    values, W, rows, indices = (
        whole(batch, k),
        whole(size, width),
        whole(batch, width),
        rng.integers(0, size, (batch, k)),
    )
    v, w, r = (jnp.asarray(a, jnp.float32) for a in (values, W, rows))
    i = jnp.asarray(indices, jnp.int32)
    e, p = decode.decode_and_dots(v, i, w, r, interpret=FAST)
    residual = rows - np.einsum("bk,bke->be", values, W[indices])
    np.testing.assert_array_equal(e, residual)
    np.testing.assert_array_equal(p, np.einsum("be,bke->bk", residual, W[indices]))
    np.testing.assert_array_equal(decode.dots(r, i, w, interpret=FAST), np.einsum("be,bke->bk", rows, W[indices]))
    dW, sums = grad.sparse_grad(v, i, r, size, interpret=FAST)
    expected, counts = np.zeros((size, width)), np.zeros(size)
    np.add.at(expected, indices, values[:, :, None] * rows[:, None])
    np.add.at(counts, indices, values)
    np.testing.assert_array_equal(dW, expected)
    np.testing.assert_array_equal(sums, counts)


DRAWN = given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 20), st.integers(1, 140), st.integers(0, 10**6))


@settings(max_examples=3, deadline=None)
@DRAWN
def test_drawn_shapes(batch, k, size, width, seed):
    check_drawn(batch, k, size, width, seed)


@slow
@settings(max_examples=25, deadline=None)
@DRAWN
def test_many_drawn_shapes(batch, k, size, width, seed):
    check_drawn(batch, k, size, width, seed)


GRADS = [
    (4, 3, 40, 100, jnp.float32, False, None),
    (7, 7, 8, 130, jnp.float32, False, 2),  # two latents own all pairs: more blocks than are prefetched
    (2, 1, 8, 8, jnp.float32, True, None),
    pytest.param(3, 11, 140, 1100, jnp.bfloat16, True, None, marks=slow),  # two tiles, two registers, transposed
    pytest.param(8, 9, 300, 2304, jnp.float32, False, None, marks=slow),
]


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(grad, "CHUNK", 16)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize(("batch", "k", "size", "width", "dtype", "transposed", "top"), GRADS)
def test_segment_gradients_equal_the_reference(batch, k, size, width, dtype, transposed, top):
    values, indices, _, rows = inputs(batch, k, size, width, top=top)
    rows = rows.astype(dtype)
    dW, sums = grad.sparse_grad(values, indices, rows, size, transposed, interpret=INTERPRET)
    expected, expected_sums = grad_reference.sparse_grad(values, indices, rows, size)
    close(dW.T if transposed else dW, expected)
    close(sums, expected_sums)
    untouched = np.setdiff1d(np.arange(size), np.asarray(indices))
    assert not np.any(np.asarray(dW.T if transposed else dW)[untouched])


@slow
def test_wide_rows_are_handled_in_column_blocks(monkeypatch):
    monkeypatch.setattr(grad, "vmem_bytes", lambda: 1)
    values, indices, _, rows = inputs(3, 4, 16, 1100)
    dW, _ = grad.sparse_grad(values, indices, rows, 16, interpret=INTERPRET)
    close(dW, grad_reference.sparse_grad(values, indices, rows, 16)[0])


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize(("transposed", "size"), [(False, 24), pytest.param(True, 128, marks=slow)])
def test_the_fused_step_equals_adam(transposed, size):
    """At sizes that fill a tile: the interpreter cannot pad an array that is updated in place."""
    values, indices, W, rows = inputs(4, 5, size, 200)
    mu, nu = 0.1 * W[::-1], W**2
    tables = [t.T if transposed else t for t in (W, mu, nu)]
    rest = (values, indices, rows, jnp.float32(0.01), jnp.int32(3), 0.9, 0.999, 1e-8, transposed)
    found = adam.sparse_adam(*tables, *rest, interpret=INTERPRET)
    for a, e in zip(found, adam_reference.sparse_adam(*tables, *rest), strict=True):
        close(a, e)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize(
    ("transposed", "size", "width"), [(False, 13, 100), (True, 21, 70), pytest.param(False, 150, 1100, marks=slow)]
)
def test_the_fused_step_at_sizes_that_fill_no_tile(transposed, size, width, monkeypatch):
    """With tables of their own for the results, as the interpreter cannot pad what is updated in place."""
    call = adam.pl.pallas_call
    apart = lambda *args, input_output_aliases, **kwargs: call(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(adam, "pl", types.SimpleNamespace(**{**vars(adam.pl), "pallas_call": apart}))
    values, indices, W, rows = inputs(4, 5, size, width)
    tables = [t.T if transposed else t for t in (W, 0.1 * W[::-1], W**2)]
    rest = (values, indices, rows, jnp.float32(0.01), jnp.int32(3), 0.9, 0.999, 1e-8, transposed)
    found = adam.sparse_adam(*tables, *rest, interpret=INTERPRET)
    for a, e in zip(found, adam_reference.sparse_adam(*tables, *rest), strict=True):
        close(a, e)


def test_sums_are_taken_in_the_order_of_tokens():
    """Against f32 sums in that order in numpy, to within one rounding per product (a fused multiply-add has fewer)."""
    values, indices, _, rows = inputs(8, 9, 8, 16, top=2)
    dW = np.asarray(grad.sparse_grad(values, indices, rows, 8, interpret=INTERPRET)[0])
    expected = np.zeros((8, 16), np.float32)
    for b in range(8):
        for v, i in zip(np.asarray(values)[b], np.asarray(indices)[b], strict=True):
            expected[i] += v * np.asarray(rows)[b]
    np.testing.assert_allclose(dW, expected, rtol=0, atol=3e-7 * np.abs(expected).max())


def test_lazy_rows_rest_and_catch_up():
    """Three steps of which only the first and last name row 1, against Adam on that row with a gap of gradient 0."""
    rng = np.random.default_rng(0)
    W, zero, last = jnp.asarray(rng.standard_normal((6, 4)), jnp.float32), jnp.zeros((6, 4)), jnp.zeros(6, jnp.int32)
    state, moments = (W, zero, zero, last), (zero[1], zero[1])
    for step, latent in ((1, 1), (2, 3), (3, 1)):
        g = jnp.asarray(rng.standard_normal((2, 4)), jnp.float32)
        values, indices = jnp.ones((2, 1)), jnp.full((2, 1), latent)
        before = state
        state = adam_xla.lazy_adam(*state, values, indices, g, jnp.float32(0.1), jnp.int32(step))
        total = g.sum(0) if latent == 1 else jnp.zeros(4)
        moments = (0.9 * moments[0] + 0.1 * total, 0.999 * moments[1] + 0.001 * total**2)
        rests = [s for s in range(6) if s != latent]
        for now, then in zip(state, before, strict=True):
            np.testing.assert_array_equal(now[jnp.array(rests)], then[jnp.array(rests)])
    np.testing.assert_allclose(state[1][1], moments[0], rtol=1e-5)
    np.testing.assert_allclose(state[2][1], moments[1], rtol=1e-5)
    assert state[3].tolist() == [0, 3, 0, 2, 0, 0]


@pytest.mark.parametrize("batch", [1, 5])
def test_xla_steps_equal_the_reference(batch):
    values, indices, W, rows = inputs(batch, 3, 400, 10)
    args = (W, 0 * W, W**2, values, indices, rows, jnp.float32(0.1), jnp.int32(1))
    pair = [kernels.sparse_adam(*args, implementation=i) for i in ("xla", "reference")]
    for a, e in zip(*pair, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


def test_a_named_kernel_is_refused_where_it_cannot_run():
    values, indices, W, rows = inputs(2, 3, 16, 8)
    for call in (
        lambda i: kernels.sparse_decode(values, indices, W, implementation=i),
        lambda i: kernels.sparse_grad(values, indices, rows, 16, implementation=i),
        lambda i: kernels.decode_residual_sddmm(values, indices, W, rows, implementation=i),
    ):
        with pytest.raises(ConfigError, match="runs on tpu, this is cpu; possible: xla"):
            call("pallas_tpu")


@slow
def test_a_batch_too_long_for_the_chip_is_summed_in_pieces(monkeypatch):
    values, indices, _, rows = inputs(5, 2, 9, 100)
    monkeypatch.setattr(grad, "most_rows", lambda itemsize: 2)
    found, sums = grad.sparse_grad(values, indices, rows, 9, interpret=INTERPRET)
    expected, expected_sums = grad_reference.sparse_grad(values, indices, rows, 9)
    close(found, expected)
    close(sums, expected_sums)


@pytest.mark.parametrize(("dtype", "most"), [(jnp.float32, 9), (jnp.bfloat16, 19)])
def test_the_fused_step_refuses_a_batch_too_long_for_the_chip(monkeypatch, dtype, most):
    """Six tenths of 64 KiB, in rows of 1,024 elements."""
    monkeypatch.setattr(grad, "vmem_bytes", lambda: 2**16)
    values, indices, _, rows = inputs(most + 1, 2, 9, 100)
    args = *[jnp.zeros((9, 100))] * 3, values, indices, rows.astype(dtype), jnp.float32(0.1), jnp.int32(1)
    message = f"'pallas_tpu' keeps the rows of a batch on the chip, at most {most} here, not {most + 1}; possible: xla"
    with compiling_for("tpu", "a TPU"), pytest.raises(ConfigError, match=message):
        kernels.sparse_adam(*args, implementation="pallas_tpu")


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("op", ["sparse_decode", "decode_residual_sddmm", "sparse_grad", "sparse_adam"])
def test_lists_of_nothing_are_no_work_of_a_kernel(op, platform, monkeypatch):
    monkeypatch.setattr(sparsecore, "cores_here", lambda: None)
    values, indices, W, rows = jnp.ones((2, 0)), jnp.ones((2, 0), jnp.int32), jnp.ones((9, 100)), jnp.ones((2, 100))
    call, expected = {
        "sparse_decode": (lambda i: kernels.sparse_decode(values, indices, W, implementation=i), 0 * rows),
        "decode_residual_sddmm": (
            lambda i: kernels.decode_residual_sddmm(values, indices, W, rows, implementation=i)[1],
            rows,
        ),
        "sparse_grad": (lambda i: kernels.sparse_grad(values, indices, rows, 9, implementation=i)[0], 0 * W),
        "sparse_adam": (
            lambda i: kernels.sparse_adam(
                W, 0 * W, 0 * W, values, indices, rows, jnp.float32(0.1), jnp.int32(1), implementation=i
            )[0],
            W,
        ),
    }[op]
    with compiling_for(platform, "a chip"):
        np.testing.assert_array_equal(call(None), expected)
        if platform == "tpu":
            with pytest.raises(ConfigError, match="'pallas_tpu' takes lists of at least one entry; possible: xla"):
                call("pallas_tpu")


@pytest.mark.parametrize("memory", [64 * 2**20, 128 * 2**20])  # v5p; v5e and v6e
@pytest.mark.parametrize(
    ("batch", "width", "k"), [(8192, 768, 32), (4096, 2304, 64), (4096, 4096, 64), (64, 16384, 512)]
)
def test_the_sizes_fit_the_chip_by_construction(batch, width, k, memory):
    """Row buffers, resident rows and blocks in VMEM, lists in a MiB of SMEM."""
    for itemsize, tables in ((2, 1), (4, 1), (2, 6), (4, 6)):
        tiling = grad.Tiling(batch, width, 65536, itemsize, memory, tables=tables)
        assert tiling.vmem <= 0.9 * memory
        assert tiling.blocks * tiling.columns < width + grad.ROW * tiling.blocks
    for words, parts in ((width, 1), (width // 2, 2)):
        for piece in {c.stop - c.start for c in decode._cuts(k, words)}:
            tiling = decode.Tiling(batch, piece, words, parts, True, True)
            assert tiling.vmem <= memory * 0.9
            assert 2 * 4 * tiling.tokens * piece <= 2**20 / 4
