"""Reading, replacing, stopping and resuming."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.errors import HostError
from jaxsae.testing.tiny_host import tiny_host

LAYERS = 3
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def host():
    return tiny_host(jax.random.key(1), n_layers=LAYERS)


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(2), (2, 6), 0, 257)


@pytest.fixture(scope="module")
def full(host, tokens):
    """Every site of an ordinary run."""
    return run(host, tokens, taps=host.model.sites())


def run(host, tokens, **options):
    """Compiled quickly rather than well."""
    f = jax.jit(lambda params, tokens: host.model.run(params, tokens, **options), compiler_options=QUICK)
    return f(host.params, tokens)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_the_sites_of_a_block_add_up(full):
    taps = {tuple(site.split(".", 2)[1:]): np.asarray(value) for site, value in full.taps.items()}
    for i in map(str, range(LAYERS)):
        close(taps[i, "hook_resid_mid"], taps[i, "hook_resid_pre"] + taps[i, "hook_attn_out"])
        close(taps[i, "hook_resid_post"], taps[i, "hook_resid_mid"] + taps[i, "hook_mlp_out"])
        if i != "0":
            np.testing.assert_array_equal(taps[i, "hook_resid_pre"], taps[str(int(i) - 1), "hook_resid_post"])


def test_a_site_reads_the_same_whatever_else_is_asked_for(host, tokens, full):
    """However the blocks are grouped (alone, in a scan, in several scans), each tap has one value."""
    sites = host.model.sites()
    for group in [sites[::5], sites[3:10], [s for s in sites if "resid_post" in s], [s for s in sites if "mlp" in s]]:
        taps = run(host, tokens, taps=group, logits=False).taps
        assert set(taps) == set(group)
        for site in group:
            close(taps[site], full.taps[site])


@pytest.mark.parametrize("site", ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.2.hook_resid_post"])
def test_one_site_without_logits_equals_the_full_run(host, tokens, full, site):
    alone = run(host, tokens, taps=site, logits=False)
    assert alone.logits is None
    close(alone.taps[site], full.taps[site])


def test_opened_blocks_equal_scanned_blocks(host, tokens, full):
    """An edit that changes nothing opens every block, and the result is that of the scan."""
    same = {site: lambda x: x for site in host.model.sites()}
    opened = run(host, tokens, taps=host.model.sites(), edits=same)
    close(opened.logits, full.logits)
    for site, value in full.taps.items():
        close(opened.taps[site], value)


def test_blocks_nobody_edits_compile_to_one_block(host, tokens):
    """The program does not grow with the number of layers read, as it would if each were written out."""

    def products(n_layers):
        deep = tiny_host(n_layers=n_layers)
        taps = [s for s in deep.model.sites() if s.endswith(("hook_normalized", "mlp_out", "resid_post"))]
        program = jax.jit(lambda params, tokens: deep.model.run(params, tokens, taps=taps))
        return program.lower(deep.params, tokens).as_text().count("dot_general")

    assert products(4) == products(12) > 0


@pytest.mark.parametrize("site", tiny_host(n_layers=LAYERS).model.sites()[7:14])
def test_an_edit_comes_before_the_tap_of_its_site_and_acts_on_everything_after(host, tokens, full, site):
    double = run(host, tokens, taps=host.model.sites(), edits={site: lambda x: 2 * x})
    close(double.taps[site], 2 * full.taps[site])
    position = host.model.sites().index(site)
    for before in host.model.sites()[:position]:
        close(double.taps[before], full.taps[before])
    assert not np.allclose(double.logits, full.logits, atol=1e-3)


def test_edits_on_both_names_of_a_border_apply_one_after_the_other(host, tokens, full):
    out, into = "blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"
    got = run(host, tokens, taps=[out, into], edits={into: lambda x: 3 * x, out: lambda x: x + 1})
    close(got.taps[out], full.taps[out] + 1)
    close(got.taps[into], 3 * (full.taps[out] + 1))


def test_taking_away_what_a_sublayer_adds_skips_it(host, tokens, full):
    """mlp_out := 0 leaves the stream of resid_mid; attn_out := 0 leaves that of resid_pre."""
    got = run(host, tokens, taps=["blocks.2.hook_resid_post"], edits={"blocks.2.hook_mlp_out": jnp.zeros_like})
    close(got.taps["blocks.2.hook_resid_post"], full.taps["blocks.2.hook_resid_mid"])
    got = run(host, tokens, taps=["blocks.2.hook_resid_mid"], edits={"blocks.2.hook_attn_out": jnp.zeros_like})
    close(got.taps["blocks.2.hook_resid_mid"], full.taps["blocks.2.hook_resid_pre"])


def test_replacing_the_last_stream_decides_the_logits(host, tokens):
    x = jax.random.normal(jax.random.key(3), (2, 6, host.model.d_model))
    got = run(host, tokens, edits={f"blocks.{LAYERS - 1}.hook_resid_post": lambda _: x})
    close(got.logits, host.model.unembed(host.params, x))


@pytest.mark.parametrize(
    "site",
    ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.2.hook_resid_post", "blocks.1.hook_resid_pre"],
)
def test_a_resumed_run_equals_the_whole_run(host, tokens, full, site):
    names = host.model.sites()
    later = names[names.index(site) :]
    resumed = run(host, None, taps=later, resume=(site, full.taps[site]))
    close(resumed.logits, full.logits)
    for name in later:
        close(resumed.taps[name], full.taps[name])


def test_edits_still_apply_at_the_site_where_a_run_resumes(host, tokens, full):
    site = "blocks.1.hook_resid_mid"
    edits = {site: lambda x: x + 0.5, "blocks.1.hook_mlp_out": lambda x: -x}
    whole = run(host, tokens, taps=[site], edits=edits)
    resumed = run(host, None, taps=[site], edits=edits, resume=(site, full.taps[site]))
    close(resumed.logits, whole.logits)
    close(resumed.taps[site], full.taps[site] + 0.5)


SITES = ("blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.hook_resid_mid", "blocks.2.hook_mlp_out")


def test_gradients_through_edits_equal_finite_differences(host, tokens):
    """Edits at four sites at once, so that some blocks are scanned and some opened."""
    along = {s: jax.random.normal(jax.random.key(i), (2, 6, host.model.width(s))) for i, s in enumerate(SITES)}

    @functools.partial(jax.jit, compiler_options=QUICK)
    def value_and_gradient(amounts):
        def loss(amounts):
            edits = {site: lambda x, i=i: x + amounts[i] * along[SITES[i]] for i, site in enumerate(SITES)}
            return jnp.mean(jax.nn.log_softmax(host.model.run(host.params, tokens, edits=edits).logits)[..., 3])

        return jax.value_and_grad(loss)(amounts)

    gradient = value_and_gradient(jnp.zeros(4))[1]
    h = 1e-2
    for i, step in enumerate(h * jnp.eye(4)):
        difference = (value_and_gradient(step)[0] - value_and_gradient(-step)[0]) / (2 * h)
        np.testing.assert_allclose(gradient[i], difference, rtol=2e-2, err_msg=SITES[i])


def test_the_backward_pass_keeps_no_copy_of_the_weights():
    deep = tiny_host(n_layers=24, d_model=64)

    @jax.jit
    def gradient(params, shift):
        def loss(shift):
            edits = {"blocks.0.hook_resid_pre": lambda x: x + shift}
            return deep.model.run(params, jnp.ones((1, 2), int), edits=edits).logits.sum()

        return jax.grad(loss)(shift)

    memory = gradient.lower(deep.params, jnp.ones((1, 2, 64))).compile().memory_analysis()
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(deep.params["blocks"]))
    assert memory.temp_size_in_bytes < weights / 3


def flops(host, tokens, **options):
    def f(params, tokens):
        got = host.model.run(params, tokens, **options)
        return got.logits, got.taps

    # The cost of a scan is counted once, not once per round: the blocks are opened to be counted.
    names = host.model.sites()
    options["edits"] = {name: (lambda x: x * 1.0) for name in names if "attn_out" in name}
    compiled = jax.jit(f, compiler_options=QUICK).lower(host.params, tokens).compile()
    return compiled.cost_analysis()["flops"]


def test_a_run_that_stops_does_not_compute_what_lies_above():
    host = tiny_host(n_layers=2, d_model=64)
    tokens = jnp.ones((2, 32), int)
    blocks = [flops(host, tokens, taps=[f"blocks.{i}.hook_resid_post"], logits=False) for i in range(2)]
    assert blocks[1] == pytest.approx(2 * blocks[0], rel=0.02)  # the second block costs what the first does
    head = 2 * tokens.size * host.model.d_model * host.model.vocab_size
    assert flops(host, tokens) == pytest.approx(blocks[1] + head, rel=0.02)
    inner = flops(host, tokens, taps=["blocks.1.hook_resid_mid"], logits=False)
    assert blocks[0] < inner < blocks[1]
    assert flops(host, tokens, taps=["blocks.1.hook_resid_pre"], logits=False) == pytest.approx(blocks[0], rel=0.02)


def test_a_stopped_run_never_calls_a_block_above(host, tokens, monkeypatch):
    called = []
    real = type(host.model).block

    def counted(self, weights, x, at, start="resid_pre"):
        called.append(1)
        return real(self, weights, x, at, start)

    monkeypatch.setattr(type(host.model), "block", counted)
    edits = {f"blocks.{i}.hook_mlp_out": lambda x: x for i in range(LAYERS)}
    taps = ["blocks.1.hook_resid_post"]
    jax.eval_shape(lambda: host.model.run(host.params, tokens, taps=taps, edits=edits, logits=False))
    assert len(called) == 2


def test_nothing_asked_for_costs_nothing(host, tokens):
    assert host.model.run(host.params, tokens, logits=False) == (None, {})


def test_bad_requests_are_one_sentence(host, tokens, full):
    x = full.taps["blocks.1.hook_resid_post"]
    cases = [
        ({"taps": ["blocks.1.hook_resid_past"]}, "did you mean 'blocks.1.hook_resid_post'"),
        ({"taps": ["blocks.9.hook_resid_post"]}, "blocks 0 to 2"),
        ({"edits": {"blocks.1.mlp_out": lambda x: x}}, "hook_mlp_out"),
        ({"edits": {"blocks.1.hook_mlp_out": lambda x: x[..., :3]}}, "returned shape"),
        ({"edits": {"blocks.1.hook_mlp_in": jnp.abs, "blocks.1.ln2.hook_normalized": jnp.abs}}, "edited twice"),
        ({"resume": ("blocks.1.hook_mlp_out", x)}, "expected a residual site"),
        ({"resume": ("blocks.1.hook_resid_post", x[..., :4])}, "residual stream has shape"),
        ({"resume": ("blocks.1.hook_resid_post", x), "taps": ["blocks.1.hook_resid_pre"]}, "lies before"),
        ({"resume": ("blocks.1.hook_resid_post", x), "edits": {"blocks.0.hook_mlp_out": jnp.abs}}, "lies before"),
    ]
    for options, message in cases:
        with pytest.raises(HostError) as e:
            jax.eval_shape(lambda options=options: host.model.run(host.params, tokens, **options))
        assert message in str(e.value)
        assert "\n" not in str(e.value)


def test_any_grouping_around_an_edit_agrees_with_the_opened_run(host, tokens):
    same = {f"blocks.{i}.hook_attn_out": lambda x: x for i in range(LAYERS)}
    sites = host.model.sites()[1::6]
    edit = {"blocks.1.hook_resid_mid": lambda x: x * 0.5}
    opened = run(host, tokens, taps=sites, edits=same | edit)
    for some in (sites, sites[1:]):
        grouped = run(host, tokens, taps=some, edits=edit)
        close(grouped.logits, opened.logits)
        for site in some:
            close(grouped.taps[site], opened.taps[site])


def test_a_run_maps_over_hosts(host, tokens, full):
    """vmap over weights: two hosts of one shape as one program."""
    other = tiny_host(jax.random.key(9), n_layers=LAYERS)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), host.params, other.params)
    got = jax.jit(jax.vmap(lambda params: host.model.run(params, tokens).logits), compiler_options=QUICK)(both)
    close(got[0], full.logits)
    close(got[1], run(other, tokens).logits)
