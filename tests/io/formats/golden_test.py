"""Files written by the real libraries give the numbers that those libraries gave."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxsae.errors import FormatError
from jaxsae.io import load

GOLDEN = Path(__file__).parents[2] / "golden"
FOLDERS = sorted(p.parent.relative_to(GOLDEN).as_posix() for p in GOLDEN.glob("*/*/about.json"))
#: What a state dict of overcomplete lacks, from the fixture's own description.
KINDS = {"SAE_mlp_bn_1": "SAE", "SAE_mlp_ln_1": "SAE", "SAE_untied": "SAE", "RATopKSAE": "TopKSAE", "QSAE_hard": "QSAE"}


def arrays(name):
    with np.load(GOLDEN / name / "io.npz") as stored:
        return dict(stored)


def options(name):
    peer, example = name.split("/")
    if peer != "overcomplete":
        return {}
    config = json.loads((GOLDEN / name / "about.json").read_text())["config"]
    found = {"kind": KINDS.get(example, example)}
    if found["kind"] in ("TopKSAE", "MpSAE"):
        found["top_k"] = config.get("top_k", config.get("k"))
    if found["kind"] == "BatchTopKSAE":
        found["running_threshold"] = float(arrays(name)["running_threshold"][0])
    if "hard" in config:
        found["hard"] = config["hard"]
    return found


def rows_first(name, a):
    """Some peers put layers before rows; here rows come first."""
    layers_first = name in ("circuit_tracer/clt_jumprelu", "gemma_scope_2/clt_affine")
    return a.swapaxes(0, 1) if layers_first else a


def agree(name, sae, x, latents, recon):
    codes = np.asarray(sae.encode(x).dense(), np.float32)
    y = np.asarray(sae(x), np.float32)
    assert y.shape == recon.shape
    if latents.ndim == 3 and latents.shape[1] == 2 and codes.size * 2 == latents.size:
        codes = np.stack([codes, codes], axis=1)  # a crosscoder that reports its shared latents once per head
    codes = codes.reshape(latents.shape)
    np.testing.assert_array_equal(codes != 0, latents != 0)
    if name.endswith("bf16"):
        assert np.abs(codes - latents).max() <= 1e-2 * np.abs(latents).max()
        assert np.abs(y - recon).max() <= 1e-2 * np.abs(recon).max()
        return
    np.testing.assert_allclose(codes, latents, atol=1e-5, rtol=0)
    assert np.abs(y - recon).max() <= 2e-5 * np.abs(recon).max()


def test_every_fixture_is_here():
    assert len(FOLDERS) == 80


@pytest.mark.parametrize("name", FOLDERS)
def test_codes_and_reconstruction(name):
    sae, stored = load(GOLDEN / name, **options(name)), arrays(name)
    x, latents, recon = (rows_first(name, stored[n]) for n in ("x", "latents", "recon"))
    agree(name, sae, x, latents, recon)


@pytest.mark.parametrize("name", [n for n in FOLDERS if "recon_decode_only" in arrays(n)])
def test_decode_alone_leaves_the_skip_path_out(name):
    sae, stored = load(GOLDEN / name), arrays(name)
    y = np.asarray(sae.decode(sae.encode(stored["x"]))) / float(sae.params.get("c_out", 1.0))
    wanted = stored["recon_decode_only"]
    assert np.abs(y - wanted).max() <= 2e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("name", [n for n in FOLDERS if "latents_batchtopk" in arrays(n)])
def test_batch_selection_on_request(name):
    stored = arrays(name)
    agree(
        name,
        load(GOLDEN / name, selection="batch"),
        stored["x"],
        stored["latents_batchtopk"],
        stored["recon_batchtopk"],
    )


@pytest.mark.parametrize("name", [n for n in FOLDERS if "latents_threshold" in arrays(n)])
def test_threshold_selection_on_request(name):
    sae, stored = load(GOLDEN / name, selection="threshold"), arrays(name)
    codes = np.asarray(sae.encode(stored["x"]).dense())
    np.testing.assert_array_equal(codes != 0, stored["latents_threshold"] != 0)
    np.testing.assert_allclose(codes, stored["latents_threshold"], atol=1e-5)


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_batch_training_checkpoints_give_their_exported_form(kind):
    name = f"sae_lens/{kind}_training"
    stored = arrays(name)
    sae = load(GOLDEN / name, selection="threshold")
    batch = load(GOLDEN / name)
    pre = np.asarray(batch.norm.inputs(batch.params, stored["x"])) - np.asarray(batch.b_dec)
    pre = pre @ np.asarray(batch.W_enc) + np.asarray(batch.b_enc)
    threshold = batch.meta.get("topk_threshold")
    wanted = np.where(pre > threshold, np.maximum(pre, 0), 0)
    np.testing.assert_allclose(np.asarray(sae.encode(stored["x"]).dense()), wanted, atol=1e-5)


def test_latents_before_the_loaders_folding_reconstruct_the_same():
    name = "dictionary_learning/AutoEncoder_april_update"
    sae, stored = load(GOLDEN / name), arrays(name)
    norms = np.linalg.norm(np.asarray(sae.W_dec), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)
    np.testing.assert_array_equal(stored["latents_raw"] != 0, np.asarray(sae.encode(stored["x"]).dense()) != 0)
    np.testing.assert_allclose(np.asarray(sae(stored["x"])), stored["recon_raw"], atol=2e-5)


def test_the_temporal_prediction_is_the_peers():
    name = "sae_lens/temporal_tied"
    sae, stored = load(GOLDEN / name), arrays(name)
    encoder = sae.encoder.encoder.in_sequences(stored["x"].shape[1])
    x = stored["x"].reshape(-1, sae.d_in) * np.asarray(sae.params["c_in"])
    predicted, _ = encoder.split(sae.params, x, sae.W_dec)
    np.testing.assert_allclose(
        np.asarray(predicted).reshape(stored["latents_pred"].shape), stored["latents_pred"], atol=1e-6
    )


@pytest.mark.parametrize("name", ["openmoss/sae_jumprelu_dataset_norm", "openmoss/transcoder_relu_dataset_norm"])
def test_dataset_norms_stay_with_the_coder(name):
    sae, stored = load(GOLDEN / name), arrays(name)
    inner = np.asarray(sae.norm.inputs(sae.params, stored["x"]))
    np.testing.assert_allclose(inner, stored["x_normalized"], rtol=1e-6)
    y = np.asarray(sae(stored["x"])) * float(sae.params["c_out"])
    np.testing.assert_allclose(y, stored["recon_normalized"], atol=2e-5)


@pytest.mark.parametrize("name", [n for n in FOLDERS if n.startswith("overcomplete")])
def test_whole_modules_only_with_consent_and_only_as_data(name):
    path, stored = GOLDEN / name / "model.pt", arrays(name)
    with pytest.raises(FormatError, match=r"reference to overcomplete\..*, not looked up"):
        load(path)
    sae = load(path, format="overcomplete", whole_module=True)
    agree(name, sae, stored["x"], stored["latents"], stored["recon"])
    np.testing.assert_allclose(np.asarray(sae.W_dec), stored["dictionary"], atol=1e-6)
