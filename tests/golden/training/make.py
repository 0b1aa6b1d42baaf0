"""Makes the golden numbers of training losses: real trainers run once, each on one batch, with torch's own gradients.

    python -m venv peers; peers/bin/pip install torch==2.13.0
    peers/bin/pip install -c <(echo torch==2.13.0) sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0
    peers/bin/python tests/golden/training/make.py

writes one `<name>.npz` per case beside this file, and `about.json`.  Each holds, in float32 and under the names and
orientations of jaxsae, the rows `x`, the parameters `p.*`, which latents count as dead (`dead`), and the peer's answer:
`codes`, `recon`, `loss`, and the gradients `g.*` of the loss.  Nothing of jaxsae is imported.  `equations.py` holds the
losses of papers whose code no package installs.
"""

import importlib.metadata
import json
import pathlib
import sys

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

D, S, K, ROWS = 6, 16, 3, 12
FRACTIONS = [1 / 8, 1 / 8, 1 / 4, 1 / 2]
ABOUT: dict[str, dict] = {}


def rows(rng: np.random.Generator) -> np.ndarray:
    """Sparse sums of random directions, with a little noise."""
    atoms = rng.standard_normal((2 * D, D))
    codes = (rng.random((ROWS, 2 * D)) < 0.2) * np.abs(rng.standard_normal((ROWS, 2 * D)))
    return (codes @ atoms + 0.05 * rng.standard_normal((ROWS, D))).astype(np.float32)


def parameters(rng: np.random.Generator, biases: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Parameters as in the middle of a run: unit atoms, an encoder near their transpose, biases off zero."""
    W = rng.standard_normal((S, D))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    p = {"W_dec": W, "W_enc": W.T + 0.2 * rng.standard_normal((D, S)), "b_dec": 0.3 * rng.standard_normal(D)}
    p |= {name: 0.2 * rng.standard_normal(S) for name in biases}
    if "threshold" in p:
        p["threshold"] = 0.3 + 0.3 * rng.random(S)
    return {name: a.astype(np.float32) for name, a in p.items()}


def put(parameter: torch.Tensor, array: np.ndarray) -> None:
    assert parameter.shape == array.shape, (parameter.shape, array.shape)
    parameter.data = torch.tensor(array).contiguous()


def keep(name: str, x, p, dead, answer: dict, leaves: dict, peer: str, **about) -> None:
    """Runs the backward pass and writes the case.  `leaves`: our name -> (the peer's parameter, whether transposed)."""
    answer["loss"].backward()
    arrays = {"x": x, "dead": dead, **{f"p.{n}": a for n, a in p.items()}}
    arrays |= {n: answer[n].detach().numpy() for n in ("codes", "recon", "loss")}
    for n, (parameter, transposed) in leaves.items():
        g = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        arrays[f"g.{n}"] = (g.T if transposed else g).numpy()
    arrays = {n: np.asarray(a, bool if n == "dead" else np.float32) for n, a in arrays.items()}
    np.savez_compressed(HERE / f"{name}.npz", **arrays)
    version = "" if peer == "equations.py" else f" {importlib.metadata.version(peer)}"
    ABOUT[name] = {"by": peer + version, **about}
    print(name, float(answer["loss"]))


def start(seed: int, *biases: str):
    """(rows, parameters, nobody dead)."""
    rng = np.random.default_rng(seed)
    return rows(rng), parameters(rng, biases), np.zeros(S, bool)


# ------------------------------------------------------------------------------------------ dictionary_learning
def dictionary_learning(name, module, trainer, seed, names, half_dead=False, set_=None, **options):
    """A trainer of dictionary_learning.  `names`: our leaf -> (attribute path in the coder, transposed)."""
    made = getattr(__import__(f"dictionary_learning.trainers.{module}", fromlist=[trainer]), trainer)
    x, p, dead = start(seed, *(n for n in names if n not in ("W_enc", "W_dec", "b_dec")))
    always = {"steps": 10_000, "activation_dim": D, "dict_size": S, "layer": 0, "lm_name": "", "device": "cpu"}
    peer = made(**always, **options)
    leaves = {}
    for ours, (path, transposed) in names.items():
        parameter = peer.ae
        for part in path.split("."):
            parameter = getattr(parameter, part)
        put(parameter, p[ours].T if transposed else p[ours])
        leaves[ours] = (parameter, transposed)
    for attribute, value in (set_ or {}).items():
        setattr(peer, attribute, value)
    tensor = torch.tensor(x)
    ranks = {"use_threshold": False} if hasattr(peer, "num_tokens_since_fired") and module != "jumprelu" else {}
    codes = peer.ae.encode(tensor, **ranks)
    if half_dead:  # latents that this batch does not use, as the trainer counts before its auxiliary loss
        dead = (codes == 0).all(0).numpy()
        peer.num_tokens_since_fired = torch.tensor(dead).long() * 2**29
    loss = peer.loss(tensor, step=10_000 if module in ("gdm", "jumprelu", "standard") else 5)
    answer = {"codes": codes, "recon": peer.ae.decode(codes), "loss": loss}
    keep(name, x, p, dead, answer, leaves, "dictionary-learning", trainer=trainer, options=options)


LINEAR = {
    "W_enc": ("encoder.weight", True),
    "b_enc": ("encoder.bias", False),
    "W_dec": ("decoder.weight", True),
    "b_dec": ("b_dec", False),
}
GATED = {
    "W_enc": ("encoder.weight", True),
    "b_gate": ("gate_bias", False),
    "b_mag": ("mag_bias", False),
    "r_mag": ("r_mag", False),
    "W_dec": ("decoder.weight", True),
    "b_dec": ("decoder_bias", False),
}
PLAIN = {n: (n, False) for n in ("W_enc", "b_enc", "W_dec", "b_dec")}


def all_of_dictionary_learning():
    run = dictionary_learning
    run("dl_gated", "gdm", "GatedSAETrainer", 0, GATED, l1_penalty=0.3)
    jump = {**PLAIN, "threshold": ("threshold", False)}
    options = {"bandwidth": 0.4, "sparsity_penalty": 3.0, "target_l0": 5.0}
    run("dl_jumprelu", "jumprelu", "JumpReluTrainer", 1, jump, **options)
    bias = {**LINEAR, "b_dec": ("bias", False)}
    anneal = {"initial_sparsity_penalty": 0.3, "sparsity_warmup_steps": None}
    at = {"p": 0.6, "next_p": None, "sparsity_coeff": 0.3 * 1.7}
    plain, root = {"sparsity_function": "Lp^p", **anneal}, {"sparsity_function": "Lp", **anneal}
    run("dl_p_anneal", "p_anneal", "PAnnealTrainer", 2, bias, set_=at, **plain)
    run("dl_p_anneal_root", "p_anneal", "PAnnealTrainer", 3, bias, set_=at, **root)
    run("dl_gated_p_anneal", "gated_anneal", "GatedAnnealTrainer", 4, GATED, set_=at, **plain)
    run("dl_relu_l1", "standard", "StandardTrainerAprilUpdate", 5, bias, l1_penalty=0.3)
    run("dl_topk", "top_k", "TopKTrainer", 6, LINEAR, k=K)
    run("dl_topk_dead", "top_k", "TopKTrainer", 7, LINEAR, half_dead=True, k=K)
    run("dl_batch_topk_dead", "batch_top_k", "BatchTopKTrainer", 8, LINEAR, half_dead=True, k=K)
    options = {"group_fractions": FRACTIONS, "group_weights": [1.0] * 4, "k": K}
    name = "matryoshka_batch_top_k"
    run("dl_matryoshka_dead", name, "MatryoshkaBatchTopKTrainer", 9, PLAIN, half_dead=True, **options)
    options["group_weights"] = None
    run("dl_matryoshka_default_weights", name, "MatryoshkaBatchTopKTrainer", 9, PLAIN, half_dead=True, **options)


# ------------------------------------------------------------------------------------------ SAELens
def sae_lens(name: str, kind: str, seed: int, biases: tuple[str, ...], half_dead=False, coefficients=None, **options):
    """A training SAE of SAELens, on one training forward pass."""
    import sae_lens
    from sae_lens.saes.sae import TrainStepInput

    rng = np.random.default_rng(seed)
    x, p, dead = rows(rng), parameters(rng, biases), np.zeros(S, bool)
    options = {"d_in": D, "d_sae": S, **options}
    made, config = (getattr(sae_lens, kind + name) for name in ("TrainingSAE", "TrainingSAEConfig"))
    if half_dead:  # dead latents that all want to fire: its auxiliary codes are not rectified
        dead = rng.random(S) < 0.5
        p["b_enc"] = np.where(dead, 3.0, p["b_enc"]).astype(np.float32)
    peer = made(config(**options))
    leaves = {ours: (getattr(peer, ours), False) for ours in p}
    for ours, (parameter, _) in leaves.items():
        put(parameter, p[ours])
    step = TrainStepInput(torch.tensor(x), coefficients or {}, torch.tensor(dead), 1, False)
    out = peer.training_forward_pass(step)
    answer = {"codes": out.feature_acts, "recon": out.sae_out, "loss": out.loss}
    about = {"trainer": kind + "TrainingSAE", "options": options, "coefficients": coefficients}
    keep(name, x, p, dead, answer, leaves, "sae-lens", **about)


def all_of_sae_lens():
    run = sae_lens
    gate, jump = ("b_gate", "b_mag", "r_mag"), ("b_enc", "threshold")
    run("sl_gated", "Gated", 20, gate, coefficients={"l1": 0.3}, apply_b_dec_to_input=True)
    step = {"jumprelu_bandwidth": 0.4, "apply_b_dec_to_input": False}
    run("sl_jumprelu_step", "JumpReLU", 21, jump, coefficients={"l0": 0.3}, **step)
    tanh = {"jumprelu_sparsity_loss_mode": "tanh", "jumprelu_ste_to_input": True, "jumprelu_bandwidth": 2.0}
    tanh["apply_b_dec_to_input"] = False
    run("sl_jumprelu_tanh", "JumpReLU", 22, jump, coefficients={"l0": 0.3}, **tanh)
    ranks = {"apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": False, "aux_loss_coefficient": 1 / 32}
    run("sl_topk_dead", "TopK", 23, ("b_enc",), half_dead=True, k=K, **ranks)
    run("sl_batch_topk_dead", "BatchTopK", 24, ("b_enc",), half_dead=True, k=K, **ranks)
    widths = [2, 4, 8, 16]
    name = "MatryoshkaBatchTopK"
    run("sl_matryoshka_dead", name, 25, ("b_enc",), half_dead=True, k=K, matryoshka_widths=widths, **ranks)
    run("sl_relu_l1", "Standard", 26, ("b_enc",), coefficients={"l1": 0.3}, apply_b_dec_to_input=False)


# ------------------------------------------------------------------------------------------ sparsify
def sparsify(name: str, seed: int, own_backward: bool, **options):
    """sparsify's coder: FVU, FVU at 4k over 8, AuxK.  Without `own_backward` torch differentiates its forward pass."""
    from sparsify import sparse_coder, utils
    from sparsify.fused_encoder import EncoderOutput

    def plain(x, weight, bias, k, activation):
        pre = torch.relu(torch.nn.functional.linear(x, weight, bias))
        return EncoderOutput(*torch.topk(pre, k, dim=-1, sorted=False), pre)

    fused = sparse_coder.fused_encoder
    sparse_coder.decoder_impl = utils.eager_decode  # the other one needs a GPU
    sparse_coder.fused_encoder = fused if own_backward else plain
    rng = np.random.default_rng(seed)
    x, p = rows(rng), parameters(rng, ("b_enc",))
    dead = rng.random(S) < 0.5
    p["b_enc"] = np.where(dead, p["b_enc"], 2.0).astype(np.float32)  # so that the batch leaves dead latents alone
    peer = sparse_coder.SparseCoder(D, sparse_coder.SparseCoderConfig(num_latents=S, k=K, **options))
    leaves = {
        "W_enc": (peer.encoder.weight, True),
        "b_enc": (peer.encoder.bias, False),
        "W_dec": (peer.W_dec, False),
        "b_dec": (peer.b_dec, False),
    }
    for ours, (parameter, transposed) in leaves.items():
        put(parameter, p[ours].T if transposed else p[ours])
    tensor = torch.tensor(x)
    top, index, _ = peer.encode(tensor)
    out = peer(tensor, dead_mask=torch.tensor(dead))
    codes = torch.zeros(ROWS, S).scatter(1, index, top)
    loss = out.fvu + out.auxk_loss / 32 + out.multi_topk_fvu / 8
    answer = {"codes": codes, "recon": peer.decode(top, index), "loss": loss}
    about = {"trainer": "SparseCoder", "own_backward": own_backward, "options": options}
    keep(name, x, p, dead, answer, leaves, "eai-sparsify", **about)
    sparse_coder.fused_encoder = fused


def all_of_sparsify():
    sparsify("sp_topk_dead", 40, own_backward=False)
    sparsify("sp_topk_dead_own_backward", 40, own_backward=True)
    sparsify("sp_multi_topk_dead", 41, own_backward=False, multi_topk=True)


# ------------------------------------------------------------------------------------------ papers alone
def transcribed(name: str, seed: int, function, **options):
    """A loss of `equations.py`, in float64."""
    rng = np.random.default_rng(seed)
    x, p, dead = rows(rng), parameters(rng, ("b_enc",)), rng.random(S) < 0.5
    extra = options.pop("extra", lambda rng: {})(rng)
    p |= extra
    leaves = {n: (torch.tensor(a, dtype=torch.float64, requires_grad=True), False) for n, a in p.items()}
    tensors = {n: leaf for n, (leaf, _) in leaves.items()}
    codes, recon, loss = function(torch.tensor(x, dtype=torch.float64), tensors, torch.tensor(dead), **options)
    answer = {"codes": codes, "recon": recon, "loss": loss}
    options = {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in options.items()}
    keep(name, x, p, dead, answer, leaves, "equations.py", function=function.__name__, options=options)


def all_of_equations():
    import equations as eq

    transcribed("eq_msae", 60, eq.msae, counts=[2, 4, 8, 16], weights=[1.0, 1.0, 1.0, 1.0], cap=None)
    transcribed("eq_msae_reversed_capped", 61, eq.msae, counts=[2, 4, 8, 16], weights=[4.0, 3.0, 2.0, 1.0], cap=0.7)
    probe = lambda rng: {  # noqa: E731
        "probe_w": (2 * rng.standard_normal(D)).astype(np.float32),
        "probe_b": np.float32(5.0),
    }
    options = {"k_min": 1, "k_max": 8, "l1": 0.2, "k_aux": 3, "aux": 1 / 32}
    transcribed("eq_adaptive_k", 62, eq.adaptive_k, extra=probe, **options)
    order = np.random.default_rng(5).permutation(S)
    transcribed("eq_ortsae", 63, eq.ortsae, k=K, gamma=0.25, order=order, chunks=2, k_aux=3, aux=1 / 32)


if __name__ == "__main__":
    torch.manual_seed(0)
    all_of_dictionary_learning()
    all_of_sae_lens()
    all_of_sparsify()
    all_of_equations()
    (HERE / "about.json").write_text(json.dumps(ABOUT, indent=1) + "\n")
