"""Every dictionary through every format that can hold it, and a reason from every format that cannot."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxsae.errors import FormatError
from jaxsae.io import formats, load, save
from jaxsae.io.compare import compare
from jaxsae.sae import (
    SAE,
    Affine,
    Bias,
    DatasetNorm,
    Free,
    Gated,
    Glu,
    GroupMax,
    Linear,
    LinearSkip,
    NoNorm,
    PreSelect,
    Rank,
    Relu,
    RowLength,
    RowNorm,
    RowShape,
    Standardise,
    Threshold,
    Whiten,
)

GOLDEN = Path(__file__).parents[2] / "golden"
WRITERS = [name for name, f in formats().items() if hasattr(f, "save")]

#: Which formats have words for a plain square dictionary, by what selects.
SELECTIONS = {
    "relu": set(WRITERS),
    "topk": {"jaxsae", "sae_lens", "sparsify", "dictionary_learning", "llamascopium"},
    "topk by norm": {"jaxsae", "sae_lens", "sparsify", "dictionary_learning", "llamascopium"},
    "abstopk": {"jaxsae", "sae_lens"},
    "jumprelu": set(WRITERS) - {"sparsify", "openai"},
    "gated": {"jaxsae", "sae_lens", "dictionary_learning"},
    "glu": {"jaxsae", "llamascopium"},
    "groupmax": {"jaxsae", "sparsify"},
    "linear": {"jaxsae", "openai"},
}
#: Formats that keep an input scaling which cannot be folded into the weights.
SCALINGS = {
    "layer norm": {"jaxsae", "sae_lens"},
    "length": {"jaxsae", "sae_lens"},
    "length, not restored": {"jaxsae", "llamascopium"},
}
SKIP = {"jaxsae", "sparsify", "sae_lens", "circuit_tracer", "gemma_scope_2"}


def build(
    kind="relu", scaling="none", centred=True, skip=False, d=6, o=None, s=12, k=3, dtype=np.float32, seed=0, heads=False
):
    """A dictionary with random arrays and one choice in every slot."""
    rng, o = np.random.default_rng(seed), o or d
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    params = {"W_enc": draw(d, s), "b_enc": draw(s) * 0.3, "W_dec": draw(s, o), "b_dec": draw(o)}
    centred = centred and d == o
    b_pre = "b_dec" if centred else "none"
    encoder = Affine(d, s, b_pre, "random")
    selector = {
        "relu": Relu(), "topk": Rank(k), "topk by norm": Rank(k, by_norm=True), "abstopk": Rank(k, signed=True),
        "jumprelu": Threshold(), "gated": Relu(), "glu": Relu(), "groupmax": GroupMax(3), "linear": Linear(),
    }[kind]  # fmt: skip
    if isinstance(selector, Rank):
        params["k"] = np.int32(k)
    if kind == "jumprelu":
        params["threshold"] = np.abs(draw(s)) * 0.5
    if kind == "gated":
        encoder = Gated(d, s, b_pre, "random")
        params |= {"b_gate": params.pop("b_enc"), "b_mag": draw(s) * 0.3, "r_mag": draw(s) * 0.3}
    if kind == "glu":
        encoder = Glu(d, s, b_pre, "random")
        params |= {"W_glu": draw(d, s), "b_glu": draw(s)}
    norm = {
        "none": NoNorm(), "dataset": DatasetNorm(), "standardise": Standardise(), "whiten": Whiten(),
        "layer norm": RowNorm(), "length": RowLength(), "length, not restored": RowLength(restore=False),
    }[scaling]  # fmt: skip
    if scaling == "dataset":
        params |= {"c_in": np.float32(0.7), "c_out": np.float32(1.6)}
    if scaling == "standardise":
        params |= {
            "x_mean": draw(d),
            "x_scale": np.abs(draw(d)) + 0.5,
            "y_mean": draw(o),
            "y_scale": np.abs(draw(o)) + 0.5,
        }
    if scaling == "whiten":
        white = np.eye(d, dtype=np.float32) + 0.2 * draw(d, d)
        params |= {"white_mean": draw(d), "white": white, "colour": np.linalg.inv(white).astype(np.float32)}
    if skip:
        params["W_skip"] = draw(d, o)
    arrays = {n: jnp.asarray(a if n == "k" else np.asarray(a).astype(dtype)) for n, a in params.items()}
    readout = LinearSkip(d, o) if skip else Bias(o)
    return SAE(arrays, norm, PreSelect(encoder, selector), Free(s, o), readout, rows=RowShape(heads=heads))


def through(sae, format, folder):
    """The comparison of a dictionary with itself after a save and a load."""
    written = save(sae, folder / "x", format=format)
    return compare(sae, load(folder / "x", format=format), written.latent_scale, rows=50), written


def exact(found, written=None):
    assert found.codes <= 1e-5, (found, written)
    assert found.reconstruction <= 2e-5, (found, written)
    assert found.support_agreement == 1.0, (found, written)


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("kind", SELECTIONS)
def test_selections(kind, format, tmp_path):
    sae = build(kind)
    if format not in SELECTIONS[kind]:
        with pytest.raises(FormatError, match=rf"{format}.*cannot express.*nothing was written.*jaxsae"):
            save(sae, tmp_path / "x", format=format)
        assert not (tmp_path / "x").exists() or not list((tmp_path / "x").iterdir())
        return
    exact(*through(sae, format, tmp_path))


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_scalings_by_row(scaling, format, tmp_path):
    sae = build("relu", scaling)
    if format in SCALINGS[scaling]:
        exact(*through(sae, format, tmp_path))
        return
    with pytest.raises(FormatError, match="cannot express"):
        save(sae, tmp_path / "x", format=format)


def test_the_one_scaled_coder_of_the_openai_format(tmp_path):
    exact(*through(build("topk", "layer norm"), "openai", tmp_path))


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("kind", ["relu", "jumprelu"])
def test_skip_paths(kind, format, tmp_path):
    sae = build(kind, skip=True)
    if format in SKIP and (kind == "relu" or format != "sparsify"):
        exact(*through(sae, format, tmp_path))
        return
    with pytest.raises(FormatError, match="cannot express"):
        save(sae, tmp_path / "x", format=format)


@pytest.mark.parametrize("format", ["jaxsae", "sae_lens", "gemma_scope", "gemma_scope_2"])
def test_other_output_widths(format, tmp_path):
    exact(*through(build("jumprelu", o=4), format, tmp_path))


def test_heads(tmp_path):
    exact(*through(build(heads=True), "sae_lens", tmp_path))
    with pytest.raises(FormatError, match="hook_z"):
        save(build(heads=True), tmp_path / "y", format="sparsify")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["relu", "topk", "topk by norm", "jumprelu", "gated"]),
    scaling=st.sampled_from(["none", "dataset", "standardise", "whiten"]),
    centred=st.booleans(),
    d=st.sampled_from([1, 4, 7]),
    s=st.sampled_from([3, 13]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    format=st.sampled_from(WRITERS),
    seed=st.integers(0, 99),
)
def test_any_shape_and_any_constant_scaling(tmp_path_factory, kind, scaling, centred, d, s, dtype, format, seed):
    """What can be folded is folded exactly: scaling, centring, decoder norms, in any combination."""
    if format not in SELECTIONS[kind]:
        return
    kept = jnp.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    sae = build(kind, scaling, centred, d=d, s=s, k=min(3, s), dtype=kept, seed=seed)
    found, written = through(sae, format, tmp_path_factory.mktemp("any"))
    assert found.codes <= 4e-5, (found, written)  # standardised and whitened inputs lose a digit to cancellation
    assert found.reconstruction <= 4e-5, (found, written)
    if scaling != "none" and format != "jaxsae" and not (format == "llamascopium" and scaling == "dataset"):
        assert any("input scaling" in note for note in written.folded)


EXAMPLES = ["sae_lens/standard", "sae_lens/jumprelu", "sae_lens/topk", "sae_lens/gated", "sae_lens/transcoder",
            "sparsify/topk", "sparsify/groupmax", "openai_sparse_autoencoder/topk", "openai_sparse_autoencoder/relu",
            "dictionary_learning/BatchTopKSAE", "dictionary_learning/MatryoshkaBatchTopKSAE", "gemma_scope/sae",
            "dictionary_learning/GatedAutoEncoder", "gemma_scope_2/transcoder_affine", "openmoss/sae_topk",
            "openmoss/sae_jumprelu_dataset_norm", "openmoss_legacy/llama_scope_jumprelu", "overcomplete/SAE_untied",
            "circuit_tracer/transcoder_relu_skip"]  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_from_anybodys_format_to_every_other(name, tmp_path):
    options = {"kind": "SAE"} if name.startswith("overcomplete") else {}
    sae, able = load(GOLDEN / name, **options), []
    for format in WRITERS:
        try:
            save(sae, tmp_path / format, format=format)
        except FormatError:
            continue
        able.append(format)
        found, written = through(sae, format, tmp_path / f"again-{format}")
        exact(found, written)
        again = load(tmp_path / format, format=format)
        for second in able[-3:]:  # and on from there
            exact(*through(again, second, tmp_path / f"{format}-{second}"))
    assert "jaxsae" in able
    assert len(able) >= 2


@pytest.mark.parametrize(("name", "formats_"), [
    ("openmoss/clt_relu", ("llamascopium", "circuit_tracer", "gemma_scope_2")),
    ("openmoss/clt_topk_decoder_norm", ("llamascopium",)),
    ("circuit_tracer/clt_jumprelu", ("llamascopium", "circuit_tracer", "gemma_scope_2")),
    ("gemma_scope_2/clt_affine", ("gemma_scope_2",)),
    ("openmoss/crosscoder_relu", ("llamascopium",)),
    ("openmoss/lorsa_relu", ("llamascopium",)),
    ("openmoss/sae_glu", ("llamascopium",)),
    ("openmoss/sae_batchtopk", ("llamascopium",)),
    ("sae_lens/temporal_tied", ("sae_lens",)),
])  # fmt: skip
def test_coders_beyond_the_plain_one(name, formats_, tmp_path):
    sae = load(GOLDEN / name)
    for format in WRITERS:
        if format in (*formats_, "jaxsae"):
            exact(*through(sae, format, tmp_path / format))
        else:
            with pytest.raises(FormatError, match="cannot express"):
                save(sae, tmp_path / format, format=format)


def test_what_was_folded_is_said(tmp_path):
    written = save(build("relu", "dataset"), tmp_path / "a", format="gemma_scope")
    assert any("centring" in note for note in written.folded)
    assert any("DatasetNorm" in note for note in written.folded)
    assert "centring" in (tmp_path / "a" / "jaxsae.json").read_text()
    assert save(build("relu", centred=False), tmp_path / "b", format="gemma_scope").folded == ()
    scaled = save(build("topk by norm"), tmp_path / "c", format="sae_lens")
    np.testing.assert_allclose(scaled.latent_scale, np.linalg.norm(np.asarray(build("topk by norm").W_dec), axis=1))


def test_the_peers_own_metadata_survives(tmp_path):
    import json

    sae = load(GOLDEN / "sae_lens" / "topk")
    save(sae, tmp_path, format="sae_lens")
    before = json.loads((GOLDEN / "sae_lens" / "topk" / "cfg.json").read_text())["metadata"]
    after = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    for key in ("model_name", "hook_name", "context_size", "dataset_path", "prepend_bos"):
        assert after[key] == before[key]
