"""Architectures without a golden file: files made here, and the published formulas written out in numpy."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxsae.errors import FormatError
from jaxsae.io import load, save
from jaxsae.io.compare import compare
from jaxsae.io.formats._pt import pt_bytes
from jaxsae.io.formats._write import write_file

D, F, ROWS = 6, 10, 16
GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def draw(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def relu(h):
    return np.maximum(h, 0)


def top(h, k):
    kept = np.argsort(-h, axis=-1, kind="stable")[..., :k]
    out = np.zeros_like(h)
    np.put_along_axis(out, kept, np.take_along_axis(h, kept, -1), -1)
    return out


def agree(sae, x, codes, y, atol=2e-5):
    found = np.asarray(sae.encode(x).dense()).reshape(codes.shape)
    np.testing.assert_array_equal(found != 0, codes != 0)
    np.testing.assert_allclose(found, codes, atol=atol)
    np.testing.assert_allclose(np.asarray(sae(x)), y, atol=5 * atol)


def sae_lens(folder, arrays, **config):
    folder.mkdir(exist_ok=True)
    base = {
        "architecture": "standard",
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "metadata": {"sae_lens_version": "6.1.0"},
    }
    (folder / "cfg.json").write_text(json.dumps(base | config))
    save_file({n: np.asarray(a, order="C") for n, a in arrays.items()}, folder / "sae_weights.safetensors")
    return folder


def plain(rng, o=D):
    return {"W_enc": draw(rng, D, F), "b_enc": draw(rng, F), "W_dec": draw(rng, F, o), "b_dec": draw(rng, o)}


# ------------------------------------------------------------------------------------------------ SAELens
@pytest.mark.parametrize("stop_on_repeat", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_sae_lens_matching_pursuit(tmp_path, rng, stop_on_repeat, centred):
    W, b = draw(rng, F, D), draw(rng, D)
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    config = {"residual_threshold": 0.3, "max_iterations": 9, "stop_on_duplicate_support": stop_on_repeat}
    folder = sae_lens(
        tmp_path, {"W_dec": W, "b_dec": b}, architecture="matching_pursuit", apply_b_dec_to_input=centred, **config
    )
    x = draw(rng, ROWS, D) * 2
    codes = np.zeros((ROWS, F), np.float32)
    for n, row in enumerate(x):
        r = row - b if centred else row
        for _ in range(9):
            support = codes[n] != 0
            i = np.argmax(relu(r @ W.T))
            v = max(float(r @ W[i]), 0.0)
            codes[n, i] += v
            r = r - v * W[i]
            if (stop_on_repeat and np.array_equal(codes[n] != 0, support)) or np.linalg.norm(r) < 0.3:
                break
    agree(load(folder), x, codes, codes @ W + (b if centred else 0))
    if centred:
        save(load(folder), tmp_path / "again", format="sae_lens")
        agree(load(tmp_path / "again"), x, codes, codes @ W + b)


def test_sae_lens_whitening_of_an_unfinished_run(tmp_path, rng):
    a, mean, M = plain(rng), draw(rng, D), np.eye(D, dtype=np.float32) + 0.3 * draw(rng, D, D)
    inverse = np.linalg.inv(M).astype(np.float32)
    folder = sae_lens(tmp_path / "a", a, normalize_activations="covariance_whitening")
    x = draw(rng, ROWS, D)
    z = (x - mean) @ M - a["b_dec"]
    codes = relu(z @ a["W_enc"] + a["b_enc"])
    y = (codes @ a["W_dec"] + a["b_dec"]) @ inverse + mean
    finished = relu((x - a["b_dec"]) @ a["W_enc"] + a["b_enc"])
    agree(load(folder), x, finished, finished @ a["W_dec"] + a["b_dec"])
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": None, "has_whitening": True}))
    save_file({"mean": mean, "matrix": M, "inverse_matrix": inverse}, folder / "activation_whitening.safetensors")
    agree(load(folder), x, codes, y)
    assert compare(load(folder), _folded(load(folder), tmp_path / "b")).codes < 4e-5


def _folded(sae, folder):
    save(sae, folder, format="sae_lens")
    assert not (folder / "activation_scaler.json").exists()
    return load(folder)


def test_sae_lens_scaler_of_an_unfinished_run(tmp_path, rng):
    a = plain(rng)
    folder = sae_lens(tmp_path, a, normalize_activations="expected_average_only_in")
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.4, "has_whitening": False}))
    x = draw(rng, ROWS, D)
    codes = relu((0.4 * x - a["b_dec"]) @ a["W_enc"] + a["b_enc"])
    agree(load(folder), x, codes, (codes @ a["W_dec"] + a["b_dec"]) / 0.4)
    (folder / "activation_scaler.json").unlink()
    agree(load(folder, norm_scaling_factor=0.4), x, codes, (codes @ a["W_dec"] + a["b_dec"]) / 0.4)


def test_sae_lens_constant_norm_rescale(tmp_path, rng):
    a, x = plain(rng), draw(rng, ROWS, D) * 3
    folder = sae_lens(tmp_path, a, normalize_activations="constant_norm_rescale")
    c = np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
    codes = relu((x * c - a["b_dec"]) @ a["W_enc"] + a["b_enc"])
    agree(load(folder), x, codes, (codes @ a["W_dec"] + a["b_dec"]) / c)


def test_sae_lens_layer_normed_skip_transcoder_reads_raw_rows_in_the_skip(tmp_path, rng):
    a = plain(rng, 4) | {"W_skip": draw(rng, 4, D), "threshold": np.abs(draw(rng, F))}
    folder = sae_lens(
        tmp_path, a, architecture="jumprelu_skip_transcoder", d_out=4, apply_b_dec_to_input=False,
        normalize_activations="layer_norm",
    )  # fmt: skip
    x = draw(rng, ROWS, D) + 1
    z = (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-5)
    h = z @ a["W_enc"] + a["b_enc"]
    codes = relu(h) * (h > a["threshold"])
    agree(load(folder), x, codes, codes @ a["W_dec"] + a["b_dec"] + x @ a["W_skip"].T)


def test_sae_lens_old_names_and_factors(tmp_path, rng):
    a, factor = plain(rng), np.abs(draw(rng, F)) + 0.5
    old = {"hook_point": "blocks.3.hook_resid_pre", "finetuning_scaling_factor": True, "normalize_activations": False}
    folder = sae_lens(tmp_path, a | {"scaling_factor": factor}, metadata={}, **old)
    x = draw(rng, ROWS, D)
    codes = relu((x - a["b_dec"]) @ a["W_enc"] + a["b_enc"])
    agree(load(folder), x, codes, (codes * factor) @ a["W_dec"] + a["b_dec"])
    assert load(folder).meta.site == "blocks.3.hook_resid_pre"


def test_sae_lens_log_threshold_of_older_training_checkpoints(tmp_path, rng):
    a, log = plain(rng), draw(rng, F) * 0.5 - 1
    folder = sae_lens(tmp_path, a | {"log_threshold": log}, architecture="jumprelu", jumprelu_init_threshold=0.1)
    x = draw(rng, ROWS, D)
    h = (x - a["b_dec"]) @ a["W_enc"] + a["b_enc"]
    agree(load(folder), x, h * (h > np.exp(log)), (h * (h > np.exp(log))) @ a["W_dec"] + a["b_dec"])


def test_sae_lens_overrides_replace_values(tmp_path, rng):
    folder = sae_lens(tmp_path, plain(rng))
    assert load(folder, overrides={"apply_b_dec_to_input": False}).encoder.encoder.b_pre == "none"
    with pytest.raises(FormatError, match=r"takes no option 'overrid'"):
        load(folder, overrid={})


# ------------------------------------------------------------------------------------------------ single .pt files
def openai(rng, tied=False, **extra):
    a = {"pre_bias": draw(rng, D), "latent_bias": draw(rng, F), "encoder.weight": draw(rng, F, D)}
    a["decoder.linear.weight" if tied else "decoder.weight"] = a["encoder.weight"] if tied else draw(rng, D, F)
    a |= {"stats_last_nonzero": np.zeros(F, np.int64), "latents_activation_frequency": np.ones(F, np.float32)}
    return a | {"latents_mean_square": np.zeros(F, np.float32)} | extra


def test_openai_tied_relu(tmp_path, rng):
    a = openai(rng, True, activation="ReLU", activation_state_dict={})
    write_file(tmp_path / "a.pt", pt_bytes(a))
    x = draw(rng, ROWS, D)
    codes = relu((x - a["pre_bias"]) @ a["encoder.weight"].T + a["latent_bias"])
    agree(load(tmp_path / "a.pt"), x, codes, codes @ a["encoder.weight"] + a["pre_bias"])


@pytest.mark.parametrize("postact", ["ReLU", "Identity"])
def test_openai_top_k_may_keep_negatives(tmp_path, rng, postact):
    state = {"activation_state_dict": {"k": 4, "postact_fn": postact}, "activation.k": 4}
    a = openai(rng, activation="TopK", **state)
    a["latent_bias"] -= 4.0  # few positives
    write_file(tmp_path / "autoencoder.pt", pt_bytes(a))
    x = draw(rng, ROWS, D) * 5
    mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    h = ((x - mean) / (std + 1e-5) - a["pre_bias"]) @ a["encoder.weight"].T + a["latent_bias"]
    codes = top(h, 4) if postact == "Identity" else relu(top(h, 4))
    assert (codes < 0).any() == (postact == "Identity")
    agree(load(tmp_path), x, codes, (codes @ a["decoder.weight"].T + a["pre_bias"]) * std + mean)
    save(load(tmp_path), tmp_path / "again", format="openai")
    agree(load(tmp_path / "again"), x, codes, (codes @ a["decoder.weight"].T + a["pre_bias"]) * std + mean)


def test_dictionary_learning_backup_of_an_unfinished_run(tmp_path, rng):
    """Its weights act on rows divided by the norm factor; what is loaded takes rows as they are."""
    inner = {"encoder.weight": draw(rng, F, D), "encoder.bias": draw(rng, F), "decoder.weight": draw(rng, D, F)}
    flat = (
        {"step": 7, "norm_factor": 2.5} | {f"ae.{n}": a for n, a in inner.items()} | {"ae.decoder.bias": draw(rng, D)}
    )
    write_file(tmp_path / "ae.pt", pt_bytes(flat))
    trainer = {"dict_class": "AutoEncoderNew", "activation_dim": D, "dict_size": F, "lm_name": "m"}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    x = draw(rng, ROWS, D)
    codes = relu(x / 2.5 @ inner["encoder.weight"].T + inner["encoder.bias"]) * 2.5
    y = codes @ inner["decoder.weight"].T + 2.5 * flat["ae.decoder.bias"]
    agree(load(tmp_path), x, codes, y)
    assert "norm_factor" in str(load(tmp_path).meta.get("folded"))


def test_dictionary_learning_checkpoint_of_a_run(tmp_path, rng):
    a = {"encoder.weight": draw(rng, F, D), "encoder.bias": draw(rng, F), "decoder.weight": draw(rng, D, F)}
    (tmp_path / "checkpoints").mkdir()
    write_file(tmp_path / "checkpoints" / "ae_500.pt", pt_bytes(a | {"decoder.bias": draw(rng, D)}))
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderNew"}}))
    assert load(tmp_path / "checkpoints" / "ae_500.pt").d_sae == F


# ------------------------------------------------------------------------------------------------ crosscoders
@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
def test_crosscoder_thresholds_under_every_code_norm(tmp_path, rng, code):
    L, norms = 2, None
    a = {"encoder.weight": draw(rng, L, D, F), "encoder.bias": draw(rng, F), "decoder.weight": draw(rng, L, F, D)}
    a |= {"decoder.bias": draw(rng, L, D), "code_normalization_id": np.asarray(code, np.int64)}
    a |= {"k": np.asarray(3, np.int32), "activation_mean": np.full((L, D), np.nan, np.float32)}
    a["threshold"] = np.array([0.9, 2.1], np.float32) if code == 5 else np.asarray(1.7, np.float32)
    write_file(tmp_path / "model_final.pt", pt_bytes({f"_orig_mod.{n}": v for n, v in a.items()}))
    x = draw(rng, ROWS, L, D)
    h = relu(np.einsum("nld,ldf->nf", x, a["encoder.weight"]) + a["encoder.bias"])
    each = np.linalg.norm(a["decoder.weight"], axis=2)
    whole = np.sqrt((each**2).sum(0))
    norms = {1: each.sum(0), 2: whole, 3: whole + 0.1 * each.sum(0), 4: np.ones(F), 5: each}[code]
    if code == 5:
        codes = h[:, None] * (h[:, None] * norms > a["threshold"][:, None])
        y = np.einsum("nlf,lfd->nld", codes, a["decoder.weight"])
    else:
        codes = h * (h * norms > a["threshold"])
        y = np.einsum("nf,lfd->nld", codes, a["decoder.weight"])
    agree(load(tmp_path), x, codes, y + a["decoder.bias"])


def test_the_forks_normalised_sae(tmp_path, rng):
    a = {"encoder.weight": draw(rng, F, D), "encoder.bias": draw(rng, F), "decoder.weight": draw(rng, D, F)}
    a |= {"b_dec": draw(rng, D), "k": np.asarray(3, np.int32), "threshold": np.asarray(0.4, np.float32)}
    a |= {"activation_mean": draw(rng, D), "activation_std": np.ones(D, np.float32)}
    a["activation_global_scale"] = np.asarray(0.6, np.float32)
    write_file(tmp_path / "model_final.pt", pt_bytes(a))
    x = draw(rng, ROWS, D)
    h = ((x - a["activation_mean"]) * 0.6 - a["b_dec"]) @ a["encoder.weight"].T + a["encoder.bias"]
    codes = relu(h) * (h > 0.4)
    y = (codes @ a["decoder.weight"].T + a["b_dec"]) / (0.6 + 1e-8) + a["activation_mean"]
    agree(load(tmp_path), x, codes, y)


# ------------------------------------------------------------------------------------------------ llamascopium
def moss(folder, arrays, **config):
    folder.mkdir(exist_ok=True)
    base = {"d_model": D, "expansion_factor": F / D, "act_fn": "relu", "norm_activation": "inference"}
    base |= {"hook_point_in": "a", "hook_point_out": "b"}
    (folder / "config.json").write_text(json.dumps(base | config))
    save_file({n: np.asarray(a, order="C") for n, a in arrays.items()}, folder / "sae_weights.safetensors")
    return folder


def acted(h, norm, act, threshold):
    """l = act(h n) / n."""
    v = h * norm
    kept = {"relu": relu(v), "topk": top(relu(v), 3), "jumprelu": v * (v > threshold)}[act]
    return kept / norm


@pytest.mark.parametrize("act", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize("by_norm", [True, False])
def test_llamascopium_molt(tmp_path, rng, act, by_norm):
    a = {"W_E": draw(rng, D, F), "b_E": draw(rng, F), "b_D": draw(rng, D), "U_matrices.1": draw(rng, 7, D, 1)}
    a |= {"V_matrices.1": draw(rng, 7, 1, D), "U_matrices.2": draw(rng, 3, D, 2), "V_matrices.2": draw(rng, 3, 2, D)}
    log = draw(rng, F) * 0.3
    extra = {"activation_function.log_jumprelu_threshold": log} if act == "jumprelu" else {}
    folder = moss(
        tmp_path / "a", a | extra, sae_type="molt", rank_counts={"1": 7, "2": 3}, act_fn=act, top_k=3,
        sparsity_include_decoder_norm=by_norm,
    )  # fmt: skip
    maps = [a["U_matrices.1"][i] @ a["V_matrices.1"][i] for i in range(7)]
    maps = np.stack(maps + [a["U_matrices.2"][i] @ a["V_matrices.2"][i] for i in range(3)])
    n = np.linalg.norm(maps.reshape(F, -1), axis=1) if by_norm else np.ones(F)
    x = draw(rng, ROWS, D)
    codes = acted(x @ a["W_E"] + a["b_E"], n, act, np.exp(log))
    y = np.einsum("nf,nd,fde->ne", codes, x, maps) + a["b_D"]
    agree(load(folder), x, codes, y)
    save(load(folder), tmp_path / "b", format="llamascopium")
    agree(load(tmp_path / "b"), x, codes, y)


@pytest.mark.parametrize("act", ["topk", "jumprelu"])
@pytest.mark.parametrize("by_norm", [True, False])
def test_llamascopium_crosscoder_heads_judge_for_themselves(tmp_path, rng, act, by_norm):
    H = 2
    a = {"W_E": draw(rng, H, D, F), "b_E": draw(rng, H, F), "W_D": draw(rng, H, F, D), "b_D": draw(rng, H, D)}
    log = draw(rng, F) * 0.3
    extra = {"activation_function.log_jumprelu_threshold": log} if act == "jumprelu" else {}
    folder = moss(
        tmp_path, a | extra, sae_type="crosscoder", hook_points=["a", "b"], act_fn=act, top_k=3,
        sparsity_include_decoder_norm=by_norm,
    )  # fmt: skip
    x = draw(rng, ROWS, H, D)
    h = (np.einsum("nhd,hdf->nhf", x, a["W_E"]) + a["b_E"]).sum(1)
    n = np.linalg.norm(a["W_D"], axis=2) if by_norm else np.ones((H, F))
    codes = acted(h[:, None], n[None], act, np.exp(log))
    agree(load(folder), x, codes, np.einsum("nhf,hfd->nhd", codes, a["W_D"]) + a["b_D"])


@pytest.mark.parametrize("act", ["jumprelu", "layertopk"])
def test_llamascopium_cross_layer_transcoder(tmp_path, rng, act):
    L = 3
    a = {"W_E": draw(rng, L, D, F), "b_E": draw(rng, L, F)}
    a |= {f"W_D.{j}": draw(rng, j + 1, F, D) for j in range(L)} | {f"b_D.{j}": draw(rng, D) for j in range(L)}
    log = draw(rng, L, F) * 0.3
    extra = {"activation_function.log_jumprelu_threshold": log} if act == "jumprelu" else {}
    hooks = {"hook_points_in": ["a", "b", "c"], "hook_points_out": ["d", "e", "f"]}
    norms = {f"dataset_average_activation_norm.{h}": np.asarray(2.0 + i, np.float32) for i, h in enumerate("abcdef")}
    folder = moss(
        tmp_path, a | extra | norms, sae_type="clt", act_fn=act, top_k=5, norm_activation="dataset-wise", **hooks
    )
    x = draw(rng, ROWS, L, D)
    s_in, s_out = np.sqrt(D) / np.arange(2.0, 5.0), np.sqrt(D) / np.arange(5.0, 8.0)
    h = np.einsum("nld,ldf->nlf", x * s_in[None, :, None], a["W_E"]) + a["b_E"]
    n = np.sqrt(sum(np.pad((a[f"W_D.{j}"] ** 2).sum(2), ((0, L - 1 - j), (0, 0))) for j in range(L)))
    if act == "jumprelu":
        codes = acted(h, n, "jumprelu", np.exp(log))
    else:
        codes = (top(relu(h * n).reshape(ROWS, -1), 5)).reshape(h.shape) / n
    y = [sum(codes[:, i] @ a[f"W_D.{j}"][i] for i in range(j + 1)) + a[f"b_D.{j}"] for j in range(L)]
    agree(load(folder), x, codes, np.stack(y, 1) / s_out[None, :, None])


def test_llama_scope_r1_distill_layout(tmp_path, rng):
    a = {"encoder.weight": draw(rng, F, D), "encoder.bias": draw(rng, F), "decoder.weight": draw(rng, D, F)}
    a |= {"decoder.bias": draw(rng, D), "log_jumprelu_threshold": draw(rng, F) * 0.3 - 1}
    save_file(a, tmp_path / "sae_weights.safetensors")
    config = {"d_model": 5, "d_sae": F, "expansion_factor": 2, "hook_point_in": "blocks.1.hook_resid_post"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"d_model": D}))
    x = draw(rng, ROWS, D)
    h = x @ a["encoder.weight"].T + a["encoder.bias"]
    codes = h * (h > np.exp(a["log_jumprelu_threshold"]))
    agree(load(tmp_path), x, codes, codes @ a["decoder.weight"].T + a["decoder.bias"])


# ------------------------------------------------------------------------------------------------ overcomplete
def test_overcomplete_orthogonal_pursuit(tmp_path, rng):
    W = draw(rng, F, D)
    write_file(
        tmp_path / "s.pt", pt_bytes({"dictionary._weights": W, "dictionary.multiplier": np.asarray(0.1, np.float32)})
    )
    atoms = (W / (np.linalg.norm(W, axis=1, keepdims=True) + 1e-8)) * np.exp(np.float32(0.1))
    x = draw(rng, ROWS, D)
    codes = np.zeros((ROWS, F), np.float32)
    for n, row in enumerate(x):
        chosen, z, r = [], np.zeros(0), row
        for _ in range(3):
            corr = r @ atoms.T
            corr[chosen] = -np.inf
            chosen.append(int(np.argmax(corr)))
            A = atoms[chosen]
            z, gram, target = np.append(z, 0.0), A @ A.T, A @ row
            for _ in range(10):
                z = relu(z - (gram @ z - target) / (np.linalg.norm(gram) + 1e-8))
            r = row - z @ A
        codes[n, chosen] = z
    agree(load(tmp_path / "s.pt", kind="OMPSAE", top_k=3), x, codes, codes @ atoms, 5e-5)


@pytest.mark.parametrize("normalization", ["l2", "max_l2", "l1", "max_l1", "identity"])
def test_overcomplete_normalisers_and_ties(tmp_path, rng, normalization):
    W = draw(rng, F, D)
    norm = {"l2": 2, "l1": 1}.get(normalization.removeprefix("max_"), 2)
    size = np.linalg.norm(W, ord=norm, axis=1, keepdims=True)
    size = np.broadcast_to(size.max(), size.shape) if normalization.startswith("max") else size
    atoms = W if normalization == "identity" else W / size
    state = {
        "encoder.tied_to._weights": W,
        "dictionary._weights": W,
        "dictionary.multiplier": np.asarray(0, np.float32),
    }
    write_file(tmp_path / "state_dict.pt", pt_bytes(state))
    (tmp_path / "overcomplete.json").write_text(json.dumps({"kind": "SAE", "normalization": normalization}))
    x = draw(rng, ROWS, D)
    codes = relu(x @ atoms.T)
    agree(load(tmp_path), x, codes, codes @ atoms)


def test_overcomplete_soft_levels(tmp_path, rng):
    a = {"Q": draw(rng, 4), "encoder.weight": draw(rng, F, D), "encoder.bias": draw(rng, F)}
    a |= {"dictionary._weights": draw(rng, F, D), "dictionary.multiplier": np.asarray(0, np.float32)}
    write_file(tmp_path / "state_dict.pt", pt_bytes(a))
    x = draw(rng, ROWS, D)
    h = x @ a["encoder.weight"].T + a["encoder.bias"]
    weight = np.exp(-((h[..., None] - a["Q"]) ** 2))
    codes = relu((weight * a["Q"]).sum(-1) / weight.sum(-1))
    atoms = a["dictionary._weights"] / np.linalg.norm(a["dictionary._weights"], axis=1, keepdims=True)
    agree(load(tmp_path, hard=False), x, codes, codes @ atoms)


def test_thresholds_that_are_reached_exactly():
    """overcomplete keeps a code equal to its threshold, everyone else drops it."""
    from jaxsae.io.formats.overcomplete import just_below

    t = np.array([0.0, 0.5, 1.0], np.float32)
    assert (t > just_below(t)).all()
    assert not (np.nextafter(t, np.float32(-1)) > just_below(t)).any()
