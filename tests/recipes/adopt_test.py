"""Training that goes on: from a frozen SAE the first forward is the SAE's; from another state what fits is kept."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.errors import ConfigError
from jaxsae.optim import Adam
from jaxsae.recipes.adopt import adopt, init_from
from jaxsae.sae import (
    Affine,
    BatchRule,
    Bias,
    DatasetNorm,
    Free,
    NoNorm,
    PreSelect,
    Rank,
    Relu,
    RowNorm,
    Threshold,
    Unit,
    make_sae,
)

D, S, K = 10, 40, 5
KEY = jax.random.key(3)
X = jnp.asarray(2.0 + 3.0 * np.random.default_rng(0).standard_normal((48, D)), jnp.float32)
BATCH = {"x": X}


def a_sae(norm=NoNorm(), k=None, threshold=None, subtract=True, unit=False, **options):
    draw = np.random.default_rng(1).standard_normal
    W_dec = draw((S, D)) * np.linspace(0.3, 2.0, S)[:, None]
    W_dec = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True) if unit else W_dec
    params = {"W_enc": draw((D, S)), "b_enc": draw(S), "W_dec": W_dec, "b_dec": draw(D)}
    if threshold is not None:
        params["threshold"] = np.broadcast_to(threshold, S)
    params = {n: jnp.asarray(a, jnp.float32) for n, a in params.items()}
    return make_sae(params, norm=norm, k=k, subtract_b_dec=subtract, **options)


def relu_l1(norm=DatasetNorm(), selector=Relu(), b_pre="none", dictionary=Free(S, D), **options):
    encoder = PreSelect(Affine(D, S, b_pre), selector)
    return replace(recipes.relu_l1(D, S, **options), norm=norm, encoder=encoder, dictionary=dictionary)


def topk(**options):
    return recipes.topk(D, S, **{"k": K, **options})


def equal(found, wanted, codes=True, atol=2e-4):
    np.testing.assert_allclose(found(X), wanted(X), rtol=1e-4, atol=atol)
    if codes:
        np.testing.assert_allclose(found.encode(X).dense(), wanted.encode(X).dense(), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("b_pre", ["none", "b_dec"])
@pytest.mark.parametrize("norm", [NoNorm(), DatasetNorm()], ids=["raw", "dataset"])
def test_relu_with_a_norm_to_unfold_and_a_centring_to_move(norm, b_pre, subtract):
    sae, recipe = a_sae(subtract=subtract), relu_l1(norm, b_pre=b_pre)
    state = init_from(recipe, sae, KEY, BATCH)
    equal(recipe.export(state), sae)
    out = recipe.forward(state.params, BATCH, recipe.ctx(state))  # the training pass itself, in scaled rows
    np.testing.assert_allclose(recipe.norm.undo(state.params, out.yhat, X), sae(X), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("subtract", [False, True])
def test_topk(normalise, subtract):
    sae = a_sae(RowNorm() if normalise else NoNorm(), k=K, unit=True, subtract=subtract)
    recipe = topk(normalize_activations=normalise)
    equal(recipe.export(init_from(recipe, sae, KEY, BATCH)), sae)


def test_k_is_the_recipes_unless_given():
    sae = a_sae(k=K, unit=True)
    wider = topk(k=3 * K, normalize_activations=False)
    exported = wider.export(init_from(wider, sae, KEY, BATCH))
    assert exported.k == 3 * K
    equal(exported, a_sae(k=3 * K, unit=True))
    equal(wider.export(init_from(wider, sae, KEY, BATCH, k=sae.k)), sae)


@pytest.fixture(scope="module")
def trained():
    """The paper's topk after two steps: (recipe, state)."""
    recipe = topk()
    state = recipes.init(recipe, KEY, BATCH)
    for _ in range(2):
        state, _ = recipes.step(recipe, state, BATCH)
    return recipe, state


def apart(a, b):
    """No leaf of one state lies in the memory of the other, so that a step on one may donate it."""
    where = lambda tree: {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}  # noqa: E731
    return not where(a) & where(b)


def test_a_trained_and_exported_dictionary_goes_on_where_it_was(trained):
    recipe, state = trained
    sae = recipe.export(state)
    again = init_from(recipe, sae, jax.random.key(9), BATCH)
    equal(recipe.export(again), sae, atol=1e-5)
    for name in ("W_enc", "W_dec", "b_dec"):
        np.testing.assert_allclose(again.params[name], state.params[name], rtol=1e-5, atol=1e-6)
    before = np.array(sae(X))
    for _ in range(2):
        again, metrics = recipes.step(recipe, again, BATCH)
    assert np.isfinite(metrics["loss"])
    np.testing.assert_array_equal(sae(X), before)  # nothing of it was donated


def test_optimiser_and_trackers_are_fresh():
    sae, recipe = a_sae(RowNorm(), k=K, unit=True), topk(average_decay=0.99)
    state = init_from(recipe, sae, KEY, BATCH)
    fresh = recipes.init(recipe, KEY, BATCH)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(lambda a: (a.shape, a.dtype), fresh)
    jax.tree.map(np.testing.assert_array_equal, state.opt, fresh.opt)
    jax.tree.map(np.testing.assert_array_equal, state.track, fresh.track)
    assert int(state.step) == 0
    np.testing.assert_array_equal(state.average["W_dec"], sae.W_dec)
    assert apart(state.params, state.average)
    assert apart(state.params, sae.params)


def test_unit_dictionary_rescales_latents():
    """Under a ReLU any rescaling is exact; under a rank only one that scores already count, or a common one."""
    unit = Unit(S, D)
    sae, recipe = a_sae(), relu_l1(dictionary=unit)
    found = recipe.export(init_from(recipe, sae, KEY, BATCH))
    equal(found, sae, codes=False)
    support = lambda one: np.asarray(one.encode(X).dense() > 0)  # noqa: E731
    np.testing.assert_array_equal(support(found), support(sae))

    by_norm, recipe = a_sae(k=K, by_norm=True), topk(normalize_activations=False)
    equal(recipe.export(init_from(recipe, by_norm, KEY, BATCH)), by_norm, codes=False)
    with pytest.raises(ConfigError, match=r"keeps atoms at norm 1, the SAE's have norms from 0\.\d+ to \d.*free dict"):
        init_from(recipe, a_sae(k=K), KEY, BATCH)
    scaled, dataset = (
        a_sae(k=K, unit=True),
        replace(recipe, norm=DatasetNorm()),
    )  # un-folding makes all atoms c_out long
    equal(dataset.export(init_from(dataset, scaled, KEY, BATCH)), scaled, codes=False)


def test_thresholds():
    level = np.linspace(0.1, 3.0, S)
    jump, recipe = a_sae(threshold=level), relu_l1(selector=Threshold())
    equal(recipe.export(init_from(recipe, jump, KEY, BATCH)), jump)
    equal(recipe.export(init_from(recipe, a_sae(), KEY, BATCH)), a_sae())  # ReLU is a threshold at 0
    equal(relu_l1().export(init_from(relu_l1(), a_sae(threshold=0.0), KEY, BATCH)), a_sae())
    unit = relu_l1(selector=Threshold(), dictionary=Unit(S, D))
    equal(unit.export(init_from(unit, jump, KEY, BATCH)), jump, codes=False)


def forth_and_back(recipe, sae, codes=True):
    """From the SAE into training and out again: the same coder.  Returns the state."""
    state = init_from(recipe, sae, KEY, BATCH)
    equal(recipe.export(state), sae, codes)
    return state


def jumprelu(norm=NoNorm(), **options):
    return replace(recipes.jumprelu(D, S, start_threshold=0.5, bandwidth=0.5, **options), norm=norm)


@pytest.mark.parametrize("log", [False, True])
def test_thresholds_become_learned_ones(log):
    """Bit for bit where they are trained as they are, to rounding through a logarithm; atoms are scaled to norm 1."""
    sae = a_sae(threshold=np.linspace(0.1, 3.0, S), unit=True, subtract=False)
    recipe = jumprelu(log_threshold=log)
    state = forth_and_back(recipe, sae)
    np.testing.assert_allclose(recipe.export(state).threshold, sae.threshold, rtol=0 if not log else 1e-6)
    scaled = jumprelu(DatasetNorm("mean_square"), log_threshold=log)
    forth_and_back(scaled, a_sae(threshold=np.linspace(0.1, 3.0, S)), codes=False)


def test_a_relu_is_a_learned_threshold_at_zero_but_has_no_logarithm():
    plain = jumprelu(log_threshold=False)
    forth_and_back(plain, a_sae(unit=True, subtract=False))
    log = jumprelu()
    with pytest.raises(ConfigError, match=r"trains the logarithm.*go down to 0; train them as they are"):
        init_from(log, a_sae(unit=True), KEY, BATCH)
    with pytest.raises(ConfigError, match="40 thresholds of the SAE are not finite"):
        init_from(plain, a_sae(threshold=np.inf, unit=True), KEY, BATCH)


@pytest.mark.parametrize("threshold", [None, 0.8])
@pytest.mark.parametrize("unit", [False, True])
def test_thresholds_become_a_gate(threshold, unit):
    recipe = replace(recipes.gated(D, S), norm=NoNorm())
    state = forth_and_back(recipe, a_sae(threshold=threshold, unit=unit), codes=unit)
    gap = state.params["b_mag"] - state.params["b_gate"]
    assert np.all(np.asarray(gap) >= (-1e-5 if threshold is None else 0.2))


def test_a_trained_gate_comes_back_with_its_gain_in_the_encoder():
    recipe = recipes.gated(D, S, lr=1e-1, lr_warm_up_steps=0)
    state = recipes.init(recipe, KEY, BATCH)
    for _ in range(3):
        state, _ = recipes.step(recipe, state, BATCH)
    assert float(jnp.abs(state.params["r_mag"]).max()) > 0.05
    again = forth_and_back(recipe, recipe.export(state))
    np.testing.assert_array_equal(again.params["r_mag"], 0)
    W = state.params["W_enc"] * jnp.exp(state.params["r_mag"])[None]
    np.testing.assert_allclose(again.params["W_enc"], W, rtol=1e-5, atol=1e-6)


def a_tied_sae(stretch=1.0, k=None):
    """Encoders along their atoms: w_j = d_j stretch_j, atoms d_j / stretch_j."""
    atoms = np.random.default_rng(4).standard_normal((S, D))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    stretch = np.broadcast_to(stretch, S)[:, None]
    b = np.random.default_rng(5).standard_normal(S) * stretch[:, 0]
    p = {"W_enc": (atoms * stretch).T, "b_enc": b, "W_dec": atoms / stretch, "b_dec": np.zeros(D)}
    return make_sae({n: jnp.asarray(a, jnp.float32) for n, a in p.items()}, k=k, subtract_b_dec=False)


def tied_with_bias():
    return replace(recipes.tied_l1(D, S), readout=Bias(D))


def test_encoders_along_their_atoms_become_one_matrix_with_them():
    state = forth_and_back(tied_with_bias(), a_tied_sae())
    np.testing.assert_array_equal(state.params["W_enc"], a_tied_sae().W_enc)
    forth_and_back(tied_with_bias(), a_tied_sae(np.linspace(0.5, 2.0, S)), codes=False)
    recipe = recipes.tied_l1(D, S)
    trained, _ = recipes.step(recipe, recipes.init(recipe, KEY, BATCH), BATCH)
    again = forth_and_back(recipe, recipe.export(trained))
    np.testing.assert_allclose(again.params["W_enc"], trained.params["W_enc"], rtol=1e-6)


def test_what_cannot_be_tied_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r"ties its encoder to its atoms.*no multiples of each other"):
        init_from(tied_with_bias(), a_sae(unit=True), KEY, BATCH)
    long = a_tied_sae()
    long = long.replace(params={**long.params, "W_dec": 4 * long.W_dec})
    with pytest.raises(ConfigError, match="would have norms from 2 to 2"):
        init_from(tied_with_bias(), long, KEY, BATCH)
    ranked = a_tied_sae(np.linspace(0.5, 2.0, S), k=K)
    with pytest.raises(ConfigError, match="reorders their ranks"):
        init_from(recipes.k_sparse(D, S, K), ranked, KEY, BATCH)


@pytest.mark.parametrize("by_norm", [False, True])
def test_batch_rank_starts_at_the_threshold_of_the_sae(by_norm):
    encoder = PreSelect(Affine(D, S, "b_dec"), Rank(K, BatchRule(), by_norm=by_norm))
    recipe = replace(topk(), norm=NoNorm(), encoder=encoder, dictionary=Free(S, D))
    norms = np.linalg.norm(a_sae().W_dec, axis=1)
    sae = a_sae(threshold=2.5 / norms if by_norm else 2.5)
    equal(recipe.export(init_from(recipe, sae, KEY, BATCH)), sae)
    with pytest.raises(ConfigError, match="keeps one threshold for all latents"):
        init_from(recipe, a_sae(threshold=np.linspace(0.1, 3.0, S)), KEY, BATCH)


def test_bfloat16_files_become_float32_masters():
    sae = a_sae(k=K, unit=True)
    narrow = sae.replace(params={n: a.astype(jnp.bfloat16) if n != "k" else a for n, a in sae.params.items()})
    recipe = topk(normalize_activations=False)
    state = init_from(recipe, narrow, KEY, BATCH)
    assert state.params["W_dec"].dtype == jnp.float32
    wide = narrow.replace(params={n: a.astype(jnp.float32) if n != "k" else a for n, a in narrow.params.items()})
    y, wanted = recipe.export(state)(X), wide(X)
    assert float(jnp.mean((y - wanted) ** 2)) < 1e-3 * float(jnp.mean(wanted**2))


@pytest.mark.parametrize(
    ("recipe", "sae", "said"),
    [
        (lambda: recipes.topk(D, S + 1, k=K), lambda: a_sae(k=K), f"d_sae = {S + 1}, found {S}; build the recipe with"),
        (lambda: recipes.topk(D + 1, S, k=K), lambda: a_sae(k=K), f"d_in = {D + 1}, found {D}"),
        (topk, lambda: a_sae(k=K, unit=True), r"expects the norm RowNorm.*the SAE has NoNorm"),
        (relu_l1, lambda: a_sae(RowNorm()), r"expects the norm DatasetNorm.*the SAE has RowNorm"),
        (relu_l1, lambda: a_sae(k=K), r"expects the selector Relu.*the SAE has Rank.*strict=False"),
        (relu_l1, lambda: a_sae(threshold=1.0), r"expects the selector Relu.*the SAE has Threshold"),
        (lambda: topk(normalize_activations=False), lambda: a_sae(unit=True), r"selector Rank.*the SAE has Relu"),
    ],
)
def test_mismatches_say_what_is_expected(recipe, sae, said):
    recipe = recipe()
    with pytest.raises(ConfigError, match=said):
        init_from(recipe, sae(), KEY, {"x": jnp.ones((8, recipe.d_in))})


def test_another_selection_on_request():
    sae, recipe = a_sae(threshold=1.0, unit=True), topk(normalize_activations=False)
    state = init_from(recipe, sae, KEY, BATCH, strict=False)
    np.testing.assert_array_equal(state.params["W_enc"], sae.W_enc)
    assert recipe.export(state).k == K


# ------------------------------------------------------------------------------------------ adopt
def test_adopt_keeps_what_fits_and_lists_both(trained):
    _, state = trained
    new, which = adopt(topk(k=3, lr=0.5), state, jax.random.key(8), BATCH)
    assert which.fresh == ()
    for part in ("params", "opt", "track"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, part), getattr(state, part))
        assert apart(getattr(new, part), getattr(state, part))
    assert float(jnp.abs(state.opt[1].mu["W_enc"]).max()) > 0
    assert (int(new.hyper["k"]), float(new.hyper["lr"]), int(new.step)) == (3, 0.5, 0)


def test_adopt_across_recipes(trained):
    _, state = trained
    new, which = adopt(relu_l1(average_decay=0.9), state, jax.random.key(8), BATCH)
    assert set(which.fresh) == {"params.c_in", "params.c_out", *(f"average.{n}" for n in new.average)}
    assert {"params.W_enc", "opt.mu.W_enc", "opt.nu.b_dec", "opt.count", "track.fired.since"} <= set(which.kept)
    np.testing.assert_array_equal(new.average["W_enc"], state.params["W_enc"])
    assert apart(new.params, new.average)


def test_adopt_finds_moments_in_another_optimiser_chain(trained):
    _, state = trained
    plain = replace(topk(), optimizer=Adam(0.9, 0.999, eps=6.25e-10, clip=None))
    new, which = adopt(plain, state, jax.random.key(8), BATCH)
    assert which.fresh == ()
    np.testing.assert_array_equal(new.opt.mu["W_enc"], state.opt[1].mu["W_enc"])


def test_adopt_initialises_what_has_another_shape(trained):
    _, state = trained
    wider = recipes.topk(D, 2 * S, k=K)
    new, which = adopt(wider, state, jax.random.key(8), BATCH)
    assert "params.b_dec" in which.kept
    assert {"params.W_enc", "params.W_dec", "track.fired.since"} <= set(which.fresh)
    assert new.params["W_dec"].shape == (2 * S, D)
    other = recipes.topk(D + 1, S + 1, k=K)
    with pytest.raises(ConfigError, match="found none in the earlier state"):
        adopt(other, state, KEY, {"x": jnp.ones((8, D + 1))})
