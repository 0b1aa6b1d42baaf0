"""The fused TPU kernel in the interpreter against the plain reference: every value and index equal.

Inputs are small multiples of 1/8, so that sums of products are exact whatever their order; only then can equality be
asked for.  Tiles are far smaller than on a chip, so that a few rows and columns cross all of their borders.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.errors import ConfigError
from jaxsae.kernels import encode_topk
from jaxsae.kernels.encode_topk import _tiles, reference
from jaxsae.kernels.encode_topk._tiles import Depth, Tiles

pallas_tpu = pytest.importorskip("jaxsae.kernels.encode_topk.pallas_tpu")
pytestmark = pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="the kernels need jax >= 0.10")

#: Neither rows nor columns are a multiple of the tile; the last of the grid's steps is partly empty.
B, D, S, K, K_AUX = 19, 24, 1100, 5, 6
MAIN, AUX = Depth(128, 4, 128, 6), Depth(512, 3, 128, 7)
TILES = Tiles(16, 256, 128, (MAIN, AUX), None)


def eighths(rng, *shape):
    return rng.integers(-8, 9, shape).astype(np.float32) / 8


def ordinary(rng):
    x, W, b, b_pre = eighths(rng, B, D), eighths(rng, D, S), eighths(rng, S), eighths(rng, D)
    return {"x": x, "W": W, "b": b, "b_pre": b_pre, "dead": rng.random(S) < 0.1}


def skewed(rng):
    """All the large latents in one group of the kernel: every certificate fails."""
    parts = ordinary(rng)
    parts["b"][::128] += 50
    return parts


def changed(**changes):
    return lambda rng: {**ordinary(rng), **changes}


def poisoned(value):
    """Some pre-activations of some rows are `value`."""

    def make(rng):
        parts = ordinary(rng)
        parts["x"][3, 0] = parts["x"][B - 1, 1] = value
        return {**parts, "b_pre": np.zeros(D, np.float32), "W": np.abs(parts["W"]) + 0.125}

    return make


CASES = {
    "ordinary, with many ties": ordinary,
    "all equal": changed(x=np.zeros((B, D), np.float32), b=np.zeros(S, np.float32), b_pre=np.zeros(D, np.float32)),
    "all negative": changed(b=np.full(S, -40, np.float32)),
    "signed zeros": changed(W=np.where(np.arange(S) % 3 == 0, -0.0, 0.0)[None].repeat(D, 0).astype(np.float32),
                            b=np.where(np.arange(S) % 2 == 0, -0.0, 0.0).astype(np.float32)),
    "skewed order": skewed,
    "sorted by size": changed(b=np.arange(S, 0, -1).astype(np.float32)),
    "infinite rows": poisoned(np.inf),
    "NaN rows": poisoned(np.nan),
    "few dead": changed(dead=np.arange(S) % 500 == 7),
    "nothing dead": changed(dead=np.zeros(S, bool)),
}  # fmt: skip


@functools.cache
def op(k_aux, signed, detect_races=False):
    from jax.experimental.pallas import tpu as pltpu

    # Races are looked for by an interpreter that calls back for every load and store: exact, and slow.
    interpret = pltpu.InterpretParams(detect_races=True) if detect_races else True
    tiles = TILES if k_aux else Tiles(16, 256, 128, (MAIN,), None)

    def run(x, W, b, b_pre, scale, dead):
        return pallas_tpu.forward(x, W, b, b_pre, scale, dead, K, k_aux, signed, tiles=tiles, interpret=interpret)

    return jax.jit(run)


def races_found():
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    return interpret_pallas_call.races.races_found


def check(parts, scale, k_aux, signed, dtype=jnp.float32, detect_races=False):
    parts = {n: jnp.asarray(a) for n, a in parts.items()}
    parts |= {n: parts[n].astype(dtype) for n in ("x", "W")}
    args = (*(parts[n] for n in ("x", "W", "b", "b_pre")), scale, parts["dead"])
    found = op(k_aux, signed, detect_races)(*args)
    for a, e in zip(found, reference.lists(*args, K, k_aux, signed), strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("case", CASES)
def test_both_lists_equal_the_reference(case):
    check(CASES[case](np.random.default_rng(0)), None, K_AUX, False)


def test_no_two_accesses_race():
    check(ordinary(np.random.default_rng(0)), None, K_AUX, False, detect_races=True)
    assert not races_found()


@pytest.mark.parametrize("case", ["ordinary, with many ties", "skewed order", "all negative", "NaN rows"])
def test_signed_and_scaled_scores(case):
    rng = np.random.default_rng(1)
    scale = jnp.asarray(2.0 ** rng.integers(-1, 2, S), jnp.float32)
    check(CASES[case](rng), scale, K_AUX, True)


@pytest.mark.parametrize("case", ["ordinary, with many ties", "all negative", "infinite rows"])
def test_magnitude_without_a_second_list(case):
    check(CASES[case](np.random.default_rng(2)), None, 0, True)


def test_bf16_products_are_summed_in_f32():
    check(ordinary(np.random.default_rng(3)), None, 0, True, jnp.bfloat16)


def test_the_certificate_fails_only_where_it_must():
    """On rows without ties at the border nothing is encoded again; on skewed rows everything is."""
    rng = np.random.default_rng(4)
    found = {"score": jnp.asarray(np.sort(rng.standard_normal((3, 4, 128)), 0)[::-1], jnp.float32)}
    found["index"] = jnp.asarray(rng.permutation(3 * 4 * 128).reshape(3, 4, 128), jnp.int32)
    fifth = np.sort(np.asarray(found["score"]).transpose(1, 0, 2).reshape(4, -1), 1)[:, -5]
    for shift, fine in ((-0.01, True), (0.0, False), (0.01, False), (np.nan, False)):
        found["bound"] = jnp.full((4, 128), -9.0).at[:, 77].set(jnp.asarray(fifth + shift, jnp.float32))
        assert np.asarray(pallas_tpu.finish(found, 5, False, 2000)[3]).tolist() == [fine] * 4


def test_streamed_lists_equal_the_reference(monkeypatch):
    """What failed rows go through, over several blocks of columns and a rest."""
    monkeypatch.setattr(pallas_tpu, "AGAIN_COLUMNS", 300)
    p = {n: jnp.asarray(a) for n, a in ordinary(np.random.default_rng(5)).items()}
    xc = p["x"] - p["b_pre"][None]
    got = pallas_tpu.streamed(xc, p["W"], p["b"], None, p["dead"], K, K_AUX, True)
    want = reference.lists(p["x"], p["W"], p["b"], p["b_pre"], None, p["dead"], K, K_AUX, True)
    for a, e in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, e)


MIB = 2**20


@pytest.mark.parametrize("vmem", [64 * MIB, 128 * MIB])  # v5p; v5e and v6e
@pytest.mark.parametrize("k", [1, 32, 64, 256])
@pytest.mark.parametrize("width", [576, 768, 2304, 4096])
def test_tiles_fit_by_construction_and_rarely_miss(width, k, vmem):
    for rows, k_aux, scaled, itemsize in ((8192, 0, False, 2), (4096, 512, False, 2), (100, 64, True, 4)):
        tiles = _tiles.plan(rows, width, k, k_aux, scaled, itemsize, vmem)
        assert _tiles.vmem_bytes(tiles, width, scaled, itemsize) <= tiles.vmem < vmem
        assert tiles.rows % 16 == tiles.columns % tiles.strip == 0
        assert tiles.rows <= -(-rows // 16) * 16
        for n, depth in zip((k, k_aux), tiles.lists, strict=False):
            assert _tiles.miss_probability(n, depth.groups, depth.levels) < 1e-4
            assert depth.groups % depth.out_groups == 0
            assert tiles.columns % depth.groups == 0 or depth.groups == 2 * tiles.columns


@pytest.mark.parametrize(
    ("rows", "columns", "width", "k_aux", "scaled", "counted"),
    [
        (512, 512, 768, 0, False, 32.2),
        (512, 512, 2304, 0, False, 62.2),
        (256, 512, 2304, 0, False, 40.09),
        (512, 512, 4096, 0, False, 97.21),
        (256, 256, 2304, 512, False, 62.61),
        (128, 256, 4096, 512, True, 57.54),
    ],
)
def test_a_plan_counts_what_the_compiler_takes_in_float32(rows, columns, width, k_aux, scaled, counted):
    """MiB of VMEM that libtpu 0.0.52 asked for on v5e and v5p, k 64: never more than planned, and not far less."""
    lists = tuple(_tiles.depth_for(n, columns, 2048, 2 if scaled else 1) for n in (64, k_aux) if n)
    planned = _tiles.vmem_bytes(Tiles(rows, columns, 256, lists, None), width, scaled, 4) / MIB
    assert counted < planned < 1.2 * counted


@pytest.mark.parametrize(("shape", "k"), [((8192, 768), 32), ((4096, 2304), 64), ((4096, 4096), 64)])
def test_the_weights_stream_few_enough_times(shape, k):
    """With 256 rows a tile, the bytes of W take no longer than the products on any chip up to v5p; v6e gets 512."""
    for k_aux, most in ((0, 512), (512, 256)):
        assert _tiles.plan(*shape, k, k_aux, False, 2, 128 * MIB).rows >= most
        assert _tiles.plan(*shape, k, k_aux, False, 2, 64 * MIB).rows >= 256


@pytest.mark.parametrize(
    ("groups", "levels", "columns", "v5e", "v6e"),
    [(512, 4, 1024, 4.88, 5.0), (512, 5, 1024, 6.25, 6.25), (512, 6, 1024, 7.38, 7.62), (1024, 4, 1024, 8.0, None)],
)
def test_the_cost_of_a_list_follows_the_compilers_count(groups, levels, columns, v5e, v6e):
    """Bundles per vreg counted in the compiler's code (libtpu 0.0.52), without the fold: within a third."""
    without_fold = _tiles.cost(Depth(groups, levels, 128, 0), columns)
    for counted in filter(None, (v5e, v6e)):
        assert 0.67 < without_fold / counted < 1.1


def test_a_row_misses_as_rarely_as_computed():
    """The bound of the tail against drawn rows: 64 latents dropped into 128 groups, 3 levels."""
    rng = np.random.default_rng(6)
    missed = [np.bincount(rng.integers(0, 512, 64), minlength=512).max() >= 3 for _ in range(20000)]
    assert 0.8 < np.mean(missed) / _tiles.miss_probability(64, 512, 3) < 1.05


def test_a_width_that_cannot_fit_has_no_tiles():
    assert _tiles.plan(4096, 10**7, 64, 0, False, 4, 64 * 2**20) is None


def test_named_on_another_platform_it_says_what_is_possible():
    z = jnp.zeros
    with pytest.raises(ConfigError, match=r"'pallas_tpu' runs on tpu, this is cpu; possible: .*xla"):
        encode_topk(z((2, 4)), z((4, 8)), z(8), z(4), None, z(8, bool), 2, implementation="pallas_tpu")
