"""Terms of the threshold family against numpy, and against mistakes that others made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.errors import ConfigWarning
from jaxsae.objective import L1, GateAux, GateL1, Ghost, PAnneal, PreAct, Revive, Tanh, TanhQuadratic
from jaxsae.objective.penalties import p_sum
from jaxsae.sae import Ctx, DenseCodes, Free, LinearSkip, Out, Pre, Rows, Selection

B, D, S = 9, 5, 14
DEAD = np.arange(S) % 3 == 0


def out(mask=None):
    rng = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    y, err, W, pre, theta = 3.0 + make(B, D), make(B, D), make(S, D), make(B, S), jnp.abs(make(S))
    sel = Selection(DenseCodes(jax.nn.relu(pre)), pre=Pre(pre, pre, y), theta=theta)
    mask = jnp.ones(B) if mask is None else mask
    p = {"W_dec": W, "b_dec": make(D)}
    return Out(Rows(y, y, mask), p, sel, err, jnp.sum(err**2, -1, keepdims=True), y - err, Free(S, D))


def ctx(dead=DEAD, **track):
    since = jnp.where(jnp.asarray(dead), 100, 0).astype(jnp.int32)
    return Ctx(jnp.int32(0), None, {"dead_after_tokens": 50}, {"fired": {"since": since}, **track})


def parts(o):
    f = lambda a: np.asarray(a, np.float64)  # noqa: E731
    return f(o.sel.pre.value), f(o.sel.theta), f(o.p["W_dec"]), f(o.err), f(o.rows.y)


def test_tanh_and_its_quadratic_form():
    mask = jnp.asarray([1.0] * 6 + [0.0] * 3)
    o = out(mask)
    pre, _, W, *_ = parts(o)
    soft = np.tanh(4 * np.maximum(pre, 0) * np.linalg.norm(W, axis=1))
    np.testing.assert_allclose(Tanh()(o, ctx()), soft.sum(1), rtol=1e-5)
    f = soft[:6].mean(0)
    np.testing.assert_allclose(TanhQuadratic(s=0.1)(o, ctx()), (f * (1 + f / 0.1)).sum(), rtol=1e-5)


@pytest.mark.parametrize("dead_only", [False, True])
def test_pre_activation_loss(dead_only):
    o = out()
    pre, theta, W, *_ = parts(o)
    each = np.maximum(theta - pre, 0) * np.linalg.norm(W, axis=1)
    np.testing.assert_allclose(
        PreAct(dead_only=dead_only)(o, ctx()), each[:, DEAD if dead_only else slice(None)].sum(1), rtol=1e-5
    )


def test_revival_pushes_dead_latents_up_and_no_others():
    o = out()
    pre = parts(o)[0]
    np.testing.assert_allclose(Revive()(o, ctx()), -pre[:, DEAD].mean(1), rtol=1e-4, atol=1e-6)
    assert not np.any(Revive()(o, ctx(dead=np.zeros(S, bool))))


def test_ghost_gradients_by_hand():
    """The scaled error equals the main error row by row; its gradient is that of the formula in float64."""
    o = out()
    pre, _, W, err, _ = parts(o)
    np.testing.assert_allclose(Ghost()(o, ctx()), (err**2).sum(1), rtol=1e-4)
    assert not np.any(Ghost()(o, ctx(dead=np.zeros(S, bool))))

    def ours(v):
        return jnp.sum(Ghost()(o._replace(sel=o.sel._replace(pre=Pre(v, v, o.rows.x))), ctx()))

    g = np.asarray(jax.grad(ours)(o.sel.pre.value))
    act = np.where(DEAD, np.exp(pre), 0.0)
    ghost = act @ W
    s = np.linalg.norm(err, axis=1) / (2 * np.linalg.norm(ghost, axis=1))
    rest = err - ghost * s[:, None]
    scale = (err**2).sum(1) / (rest**2).sum(1)
    expected = -2 * (scale * s)[:, None] * (rest @ W.T) * act
    np.testing.assert_allclose(g, expected, rtol=1e-3, atol=1e-5)
    large = o._replace(sel=o.sel._replace(pre=Pre(o.sel.pre.score, o.sel.pre.value + 200.0, o.rows.x)))
    np.testing.assert_allclose(Ghost()(large, ctx()), Ghost()(o, ctx()), rtol=1e-3)  # nothing overflows


def test_gate_terms():
    o = out()
    pre, _, W, _, y = parts(o)
    np.testing.assert_allclose(GateL1()(o, ctx()), np.maximum(pre, 0).sum(1), rtol=1e-5)
    through = y - np.maximum(pre, 0) @ W - np.asarray(o.p["b_dec"], np.float64)
    np.testing.assert_allclose(GateAux()(o, ctx()), (through**2).sum(1), rtol=1e-5)


def gate_gradients(*terms):
    recipe = recipes.gated(D, S)
    batch = {"x": jax.random.normal(jax.random.key(1), (32, D))}
    state = recipes.init(recipe, jax.random.key(0), batch)
    train, fixed = recipe.split(state.params)

    def loss(train):
        o, c = recipe.forward({**train, **fixed}, batch, recipe.ctx(state)), recipe.ctx(state)
        return sum(jnp.mean(term(o, c)) for term in terms)

    return {n: float(jnp.abs(g).max()) for n, g in jax.grad(loss)(train).items()}


def test_the_auxiliary_loss_trains_the_gate_and_not_the_atoms():
    g = gate_gradients(GateAux())
    assert g["W_dec"] == 0.0
    assert g["W_enc"] > 0
    assert g["b_gate"] > 0


def test_without_its_two_losses_a_gate_gets_no_gradient():
    recipe = recipes.gated(D, S)
    assert gate_gradients(recipe.terms[0])["b_gate"] == 0.0
    assert gate_gradients(*recipe.terms)["b_gate"] > 0


def test_a_power_sum_has_no_slope_at_zero_and_the_right_one_elsewhere():
    v = jnp.array([[0.0, 0.5, 2.0]])
    np.testing.assert_allclose(p_sum(v, 0.4, False), [0.5**0.4 + 2**0.4], rtol=1e-6)
    np.testing.assert_allclose(p_sum(v, 0.4, True), [(0.5**0.4 + 2**0.4) ** 2.5], rtol=1e-5)
    g = jax.grad(lambda v: jnp.sum(p_sum(v, 0.4, False)))(v)
    np.testing.assert_allclose(g, [[0.0, 0.4 * 0.5**-0.6, 0.4 * 2**-0.6]], rtol=1e-5)
    assert np.all(np.isfinite(jax.grad(lambda v: jnp.sum(p_sum(v, 0.4, True)))(jnp.zeros((1, 3)))))


def test_p_falls_in_equal_steps_and_the_penalty_keeps_its_size():
    """10 steps, annealed from step 4 in 3 values: p = 1 to step 7, then 0.6; 0.2 would come after the end."""
    tracker = PAnneal(first=4, last=10, p_start=1.0, p_end=0.2, updates=3, queue=2)
    own, codes, found = tracker.init(3), jnp.array([[0.0, 0.5, 4.0]]), []
    for step in range(10):
        c = Ctx(jnp.int32(step), None, {}, {"p_anneal": own})
        o = Out(Rows(codes, codes, jnp.ones(1)), {}, Selection(DenseCodes(codes)), None, None, None, None)
        found.append((float(own["p"]), float(own["factor"] * p_sum(codes, own["p"], False)[0])))
        own = tracker.update(own, tracker.observe(o, c), c)
    np.testing.assert_allclose([p for p, _ in found], [1.0] * 8 + [0.6] * 2, rtol=1e-6)
    np.testing.assert_allclose([size for _, size in found], [4.5] * 10, rtol=1e-5)


def test_l1_that_scaling_evades_is_warned_of():
    from dataclasses import replace

    recipe = recipes.relu_l1(D, S, l1_coefficient=1.0)
    with pytest.warns(ConfigWarning, match="no minimum"):
        replace(recipe, terms=(recipe.terms[0], L1(by_norm=False)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: recipes.relu_l1(16, S, l1_coefficient=w), r"l1_coefficient = 8 is not below 2 \|\|x\|\| = 8"),
        (lambda w: recipes.gated(16, S, l1_coefficient=w), r"l1_coefficient = 8 is not below"),
        (lambda w: recipes.p_anneal(16, S, sparsity_coefficient=w), r"sparsity_coefficient = 8 is not below"),
        (lambda w: recipes.jumprelu(16, S, l0_coefficient=w / 8), r"l0_coefficient = 1 is not below \|\|x\|\|\^2 = 1"),
    ],
)
def test_a_weight_no_latent_is_worth_is_warned_of_with_the_figure(make, message):
    make(7.9)  # warnings are errors
    with pytest.warns(ConfigWarning, match=message):
        make(8.0)


def test_from_twice_the_length_of_a_row_on_no_code_lowers_an_l1_loss():
    """The bound of the warning, tried out: the best code of a row under its best atom, by a fine grid of codes."""
    y = np.array([3.0, 4.0])  # length 5
    z = np.linspace(0, 6, 6001)[:, None]
    loss = lambda w: ((y - z * y / 5) ** 2).sum(1) + w * z[:, 0]  # noqa: E731
    assert np.argmin(loss(10.0)) == 0
    assert np.argmin(loss(9.9)) > 0


def test_the_gates_reconstruction_has_the_linear_path_that_the_output_has():
    """Beside a linear skip the gate must model what the skip leaves over, without training the skip."""
    o = out()
    y, W_skip = o.rows.y, jnp.asarray(np.random.default_rng(2).standard_normal((D, D)), jnp.float32)
    o = o._replace(p={**o.p, "W_skip": W_skip}, readout=LinearSkip(D, D))
    through = jax.nn.relu(o.sel.pre.score) @ o.p["W_dec"]
    expected = np.sum(np.asarray(y - (through + y @ W_skip + o.p["b_dec"][None]), np.float64) ** 2, axis=1)
    np.testing.assert_allclose(GateAux()(o, ctx()), expected, rtol=1e-4)
    slope = jax.grad(lambda p: jnp.sum(GateAux()(o._replace(p=p), ctx())))(o.p)
    assert all(float(jnp.abs(g).max()) == 0.0 for g in slope.values())
