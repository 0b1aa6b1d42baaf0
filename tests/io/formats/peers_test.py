"""Files written here, read by the libraries themselves: same codes, same outputs.  Needs them beside torch."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from jaxsae.io import load, save

GOLDEN = Path(__file__).parents[2] / "golden"
pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

#: Dictionaries of any origin, and the rows they were tested with.
ORIGINS = ["sae_lens/standard", "sae_lens/topk", "sae_lens/topk_rescale", "sae_lens/gated", "sae_lens/jumprelu",
           "sae_lens/abstopk", "sae_lens/transcoder", "sae_lens/skip_transcoder", "sae_lens/standard_layer_norm",
           "sae_lens/standard_hook_z", "sae_lens/temporal_tied", "sparsify/topk", "sparsify/groupmax",
           "sparsify/skip_transcoder", "dictionary_learning/AutoEncoder", "dictionary_learning/AutoEncoderTopK",
           "dictionary_learning/BatchTopKSAE", "dictionary_learning/MatryoshkaBatchTopKSAE",
           "dictionary_learning/GatedAutoEncoder", "gemma_scope/sae", "openmoss/sae_jumprelu",
           "openai_sparse_autoencoder/topk", "openmoss_legacy/llama_scope_jumprelu"]  # fmt: skip


def both(name, format, folder):
    """(rows, codes, outputs) of a dictionary that was written, or None where the format cannot express it."""
    from jaxsae.errors import FormatError

    sae, x = load(GOLDEN / name), np.load(GOLDEN / name / "io.npz")["x"]
    try:
        written = save(sae, folder, format=format)
    except FormatError:
        return None
    scale = 1.0 if written.latent_scale is None else written.latent_scale
    return x, np.asarray(sae.encode(x).dense()) * scale, np.asarray(sae(x))


def agree(theirs, ours):
    codes, y = (np.asarray(a, np.float32) for a in theirs)
    np.testing.assert_array_equal(codes != 0, ours[0].reshape(codes.shape) != 0)
    np.testing.assert_allclose(codes, ours[0].reshape(codes.shape), atol=2e-5)
    np.testing.assert_allclose(y, ours[1].reshape(y.shape), atol=1e-4)


@pytest.mark.parametrize("name", ORIGINS)
def test_sae_lens_reads_what_was_written(name, tmp_path):
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae_lens = pytest.importorskip("sae_lens")
    found = both(name, "sae_lens", tmp_path / "x")
    if found is None:
        return
    x, *ours = found
    peer = sae_lens.SAE.load_from_disk(tmp_path / "x")
    with torch.no_grad():
        rows = torch.tensor(x)
        agree((peer.encode(rows).numpy(), peer(rows).numpy()), ours)


@pytest.mark.parametrize("name", ORIGINS)
def test_sparsify_reads_what_was_written(name, tmp_path):
    torch = pytest.importorskip("torch")
    sparsify = pytest.importorskip("sparsify")
    found = both(name, "sparsify", tmp_path / "x")
    if found is None:
        return
    x, *ours = found
    peer = sparsify.SparseCoder.load_from_disk(tmp_path / "x", device="cpu")
    with torch.no_grad():
        out = peer(torch.tensor(x))
        dense = torch.zeros(len(x), peer.num_latents).scatter_(1, out.latent_indices, out.latent_acts)
    agree((dense.numpy(), out.sae_out.numpy()), ours)


@pytest.mark.parametrize("name", ORIGINS)
def test_dictionary_learning_reads_what_was_written(name, tmp_path):
    torch = pytest.importorskip("torch")
    utils = pytest.importorskip("dictionary_learning.utils")
    found = both(name, "dictionary_learning", tmp_path / "x")
    if found is None:
        return
    x, *ours = found
    peer, _ = utils.load_dictionary(str(tmp_path / "x"), "cpu")
    with torch.no_grad():
        codes = peer.encode(torch.tensor(x))
        agree((codes.numpy(), peer.decode(codes).numpy()), ours)


def test_every_written_pt_file_passes_the_restricted_loader_of_torch(tmp_path):
    torch = pytest.importorskip("torch")
    for i, name in enumerate(ORIGINS):
        for format, file in (("openai", "autoencoder.pt"), ("dictionary_learning", "ae.pt")):
            if both(name, format, tmp_path / f"{format}-{i}") is not None:
                state = torch.load(tmp_path / f"{format}-{i}" / file, weights_only=True)
                assert all(torch.isfinite(v).all() for v in state.values() if isinstance(v, torch.Tensor))
