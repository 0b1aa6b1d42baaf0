"""The properties that every recipe, and so every slot member inside one, must have."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxsae import config
from jaxsae.errors import ConfigError
from jaxsae.recipes import Recipe, State, letters, permute
from jaxsae.sae import One, check_shapes
from jaxsae.testing.members import D_IN, ROWS


def batches(n: int, rows: int = ROWS, d: int = D_IN, seed: int = 0) -> list[dict[str, jax.Array]]:
    """Sparse sums of random directions: something a dictionary can learn."""
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((2 * d, d))
    codes = (rng.random((n, rows, 2 * d)) < 0.1) * np.abs(rng.standard_normal((n, rows, 2 * d)))
    return [{"x": jnp.asarray(x, jnp.float32)} for x in codes @ atoms + 0.01 * rng.standard_normal((n, rows, d))]


def run(recipe: Recipe, data: list, key: Any, **hyper: Any) -> tuple[State, dict]:
    """A few jitted steps; fails if the step is traced twice."""
    state, metrics, step = jax.jit(recipe.init)(key, data[0], **hyper), {}, _counted(recipe)
    for batch in data:
        state, metrics = step(state, batch)
    return state, metrics


def _counted(recipe: Recipe) -> Any:
    """The jitted step; a second trace is an error."""
    traces = []

    def step(state: State, batch: Any) -> tuple[State, dict]:
        traces.append(1)
        assert len(traces) == 1, "the step was traced twice"
        return recipe.step(state, batch)

    return jax.jit(step)


def check_init_is_abstract(recipe: Recipe, key: Any) -> None:
    """Shapes are known without computing, and every leaf's axis letters describe it."""
    sample = jax.eval_shape(lambda: batches(1)[0])
    abstract = jax.eval_shape(recipe.init, key, sample)
    table = letters(recipe, abstract)
    sizes = {"D": recipe.d_in, "S": recipe.d_sae, "E": recipe.dictionary.d_out}
    for name, leaf in abstract.params.items():
        assert all(sizes.get(c, n) == n for c, n in zip(table.params[name], leaf.shape, strict=True)), name
        assert leaf.dtype in (jnp.float32, jnp.int32), name


def check_trains_in_one_trace(recipe: Recipe, key: Any) -> None:
    """Finite throughout, one trace, dtypes kept, every trained leaf of more than one entry gets a gradient."""
    data = batches(4)
    state, metrics = run(recipe, data, key)
    chex.assert_tree_all_finite((state.params, metrics))
    assert all(a.dtype == jnp.float32 for a in recipe.split(state.params)[0].values())
    grads, _ = jax.jit(recipe.grads)(state, data[0])
    dark = [n for n, g in grads.items() if not np.any(np.asarray(g))]
    assert not dark, f"no gradient reaches {dark}"


def check_fused_equals_dense(recipe: Recipe, key: Any) -> None:
    """The path chosen at trace time changes nothing: gradients agree to rounding."""
    data = batches(3)
    state, _ = run(recipe, data, key)
    grad = jax.jit(jax.grad(recipe.loss, has_aux=True), static_argnames="fused")
    fast, _ = grad(*recipe.split(state.params), state, data[0])
    slow, _ = grad(*recipe.split(state.params), state, data[0], fused=False)
    assert_close(fast, slow, 2e-6)


def check_vmap_equals_lone_runs(recipe: Recipe, key: Any) -> None:
    """Runs with their own seeds under one program equal the same runs alone."""
    data, keys = batches(3), jax.random.split(key, 2)
    states = jax.jit(jax.vmap(lambda k: recipe.init(k, data[0])))(keys)
    states = dataclasses.replace(states, step=jnp.int32(0))
    axes = recipe.over_runs()
    step = jax.jit(jax.vmap(recipe.step, in_axes=(axes, None), out_axes=(axes, 0)))
    for batch in data:
        states, _ = step(states, batch)
    for i in range(2):
        alone, _ = run(recipe, data, keys[i])
        assert_close(jax.tree.map(lambda a, i=i: a[i], states.params), alone.params, 2e-5)


def check_padding_counts_for_nothing(recipe: Recipe, key: Any) -> None:
    """Rows with mask 0 change no gradient and no tracker, whatever they hold."""
    data = batches(2)
    state, _ = run(recipe, data, key)
    x = data[0]["x"]
    junk = jnp.concatenate([x, 7.0 + x[:8]])
    padded = {"x": junk, "mask": jnp.concatenate([jnp.ones(len(x)), jnp.zeros(8)])}
    grads, (_, seen, metrics) = jax.jit(recipe.grads)(state, data[0])
    grads_padded, (_, seen_padded, metrics_padded) = jax.jit(recipe.grads)(state, padded)
    assert_close(grads, grads_padded, 2e-6)
    assert_close(seen, seen_padded, 1e-5)
    assert_close(metrics, metrics_padded, 1e-5)


def check_permutes(recipe: Recipe, key: Any) -> None:
    """Step then permute equals permute then step: parameters, moments and trackers move together.

    Where the order of latents is structural, permuting must be refused instead.  Levels that depend on the order are
    what a permutation changes; they are left out.
    """
    if recipe.levels.ordered:
        recipe = dataclasses.replace(recipe, levels=One())
    data = batches(3)
    if getattr(recipe.encoder, "ordered", False) or getattr(recipe.dictionary, "ordered", False):
        try:
            permute(recipe, recipe.init(key, data[0]), jnp.arange(recipe.d_sae))
        except ConfigError:
            return
        raise AssertionError("an order that is structural was permuted")
    state, _ = run(recipe, data, key)
    order = jax.random.permutation(key, recipe.d_sae)
    step = jax.jit(recipe.step)
    first, _ = step(permute(recipe, state, order), data[0])
    second = permute(recipe, step(state, data[0])[0], order)
    assert_close((first.params, first.track, first.opt), (second.params, second.track, second.opt), 2e-6)


def check_round_trips_as_config(recipe: Recipe, key: Any) -> None:
    """YAML of a recipe reads back as an equal recipe with an equal hash."""
    import yaml

    again = config.from_dict(yaml.safe_load(config.dump_yaml(recipe)), Recipe)
    assert again == recipe
    assert hash(again) == hash(recipe)


def check_exports(recipe: Recipe, key: Any) -> None:
    """The first inference form gives what evaluation sees inside the recipe; every form has arrays as declared."""
    data = batches(4)
    state, _ = run(recipe, data, key)
    x = data[0]["x"]
    for form in recipe.encoder.forms:
        sae = recipe.export(state, form)
        check_shapes(sae)
        assert sae.form == form
        assert np.all(np.isfinite(jax.jit(lambda s, x: s(x))(sae, x)))
    sae = recipe.export(state)

    @jax.jit
    def inside(state: State) -> tuple:
        out = recipe.forward(recipe.weights(state), data[0], recipe.ctx(state, train=False))
        return recipe.norm.undo(state.params, out.yhat, x), out.sel.codes.dense()

    yhat, codes = inside(state)
    np.testing.assert_allclose(sae(x), yhat, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(sae.encode(x).dense() != 0, codes != 0)
    np.testing.assert_allclose(sae.encode(x).dense(), codes, rtol=2e-5, atol=2e-5)


def check_member(recipe: Recipe, key: Any) -> None:
    """What every slot member must do, in two compilations.

    Abstract init; YAML; one trace; everything finite; every trained leaf moves; and rows with mask 0 change nothing,
    whatever they hold.
    """
    check_init_is_abstract(recipe, key)
    check_round_trips_as_config(recipe, key)
    data, step = batches(3), _counted(recipe)
    init, ends = jax.jit(recipe.init), []
    for junk in (7.0, -100.0):
        padded = [_padded(b["x"], junk) for b in data]
        # Data-dependent init may read every row of its sample, so both runs start from one sample.
        state, metrics = init(key, _padded(data[0]["x"], 7.0)), {}
        start = recipe.split(state.params)[0]
        for batch in padded:
            state, metrics = step(state, batch)
        ends.append((state.params, state.track, metrics))
    chex.assert_tree_all_finite((state.params, metrics))
    still = [n for n, a in recipe.split(state.params)[0].items() if np.array_equal(a, start[n])]
    assert not still, f"{still} did not move"
    assert_close(ends[0], ends[1], 1e-5)


def _padded(x: jax.Array, junk: float) -> dict[str, jax.Array]:
    rows = jnp.concatenate([x, junk + x[:8]])
    return {"x": rows, "mask": jnp.concatenate([jnp.ones(len(x)), jnp.zeros(8)])}


#: What every recipe must show, and what takes longer.
QUICK = (check_member, check_fused_equals_dense, check_exports)
REST = (
    check_trains_in_one_trace,
    check_padding_counts_for_nothing,
    check_vmap_equals_lone_runs,
    check_permutes,
)


def assert_close(a: Any, b: Any, tolerance: float) -> None:
    """Every leaf agrees within `tolerance` times the largest entry of that leaf (NaN equals NaN)."""
    paths = jax.tree_util.tree_flatten_with_path(a)[0]
    for (path, u), v in zip(paths, jax.tree.leaves(b), strict=True):
        u, v = np.asarray(u, np.float64), np.asarray(v, np.float64)
        scale = max(np.nanmax(np.abs(v), initial=0.0), 1e-6)
        worst = np.nanmax(np.abs(u - v), initial=0.0) / scale
        name = jax.tree_util.keystr(path)
        assert np.array_equal(np.isnan(u), np.isnan(v)), f"{name}: NaN on one side only"
        assert worst <= tolerance, f"{name}: differs by {worst:.1e} of its largest entry, allowed {tolerance:.0e}"
