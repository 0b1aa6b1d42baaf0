"""The front door: what is recognised, what is ambiguous, where arrays go, and what is never overwritten."""

import os
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae.errors import FormatError
from jaxsae.io import find, load, save
from jaxsae.parallel import make_mesh
from jaxsae.sae import make_sae

GOLDEN = Path(__file__).parents[2] / "golden"


def tiny(d=8, s=16, k=None):
    rng = np.random.default_rng(0)
    arrays = {"W_enc": (d, s), "b_enc": (s,), "W_dec": (s, d), "b_dec": (d,)}
    return make_sae({n: jnp.asarray(rng.standard_normal(a), jnp.float32) for n, a in arrays.items()}, k=k)


def test_the_package_has_the_door_too():
    assert jaxsae.load is load
    assert jaxsae.save is save


def test_one_file_of_weights_is_enough():
    sae = load(GOLDEN / "circuit_tracer" / "transcoder_relu" / "layer_0.safetensors")
    assert sae.meta.get("source_format") == "circuit_tracer"
    assert load(GOLDEN / "gemma_scope" / "sae" / "params.npz").d_sae == 64
    assert load(GOLDEN / "openai_sparse_autoencoder" / "topk" / "autoencoder_loadable.pt").k == 6
    assert load(GOLDEN / "sae_lens" / "topk" / "cfg.json").k == 6


def test_a_run_with_one_trainer_stands_for_it():
    assert load(GOLDEN / "dictionary_learning" / "AutoEncoderTopK").k == 6


def test_two_formats_in_one_folder_are_both_named(tmp_path):
    save(tiny(), tmp_path, format="sae_lens")
    save(tiny(), tmp_path / "b", format="sparsify")
    shutil.copy(tmp_path / "b" / "sae.safetensors", tmp_path)
    with pytest.raises(FormatError, match=r"sae_lens and sparsify.*format="):
        load(tmp_path)
    assert load(tmp_path, format="sae_lens").d_sae == 16


@pytest.mark.parametrize("content", [(), ("readme.md",), ("a/b/c.txt",)])
def test_nothing_known(tmp_path, content):
    for name in content:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("hello")
    with pytest.raises(FormatError, match="expected the files of a known format"):
        load(tmp_path)
    with pytest.raises(FormatError, match="found nothing"):
        load(tmp_path / "missing")


def test_several_dictionaries_are_counted_and_one_is_named():
    with pytest.raises(FormatError, match=r"holds \d+ dictionaries; name one of them, such as .*sae_lens"):
        load(GOLDEN / "sae_lens")


def test_unknown_names_have_hints(tmp_path):
    with pytest.raises(FormatError, match="did you mean 'sae_lens'"):
        save(tiny(), tmp_path / "x", format="saelens")
    with pytest.raises(FormatError, match="can be read but not written"):
        save(tiny(), tmp_path / "x", format="llama_scope")
    with pytest.raises(FormatError, match="takes no option 'selectio'; did you mean 'selection'"):
        load(GOLDEN / "sae_lens" / "topk", selectio="batch")
    with pytest.raises(FormatError, match="only for batch top-k"):
        load(GOLDEN / "sae_lens" / "topk", selection="batch")


def test_another_format_is_not_written_over(tmp_path):
    save(tiny(), tmp_path, format="sae_lens")
    with pytest.raises(FormatError, match="holds files of the format sae_lens"):
        save(tiny(), tmp_path)
    save(tiny(k=3), tmp_path, format="sae_lens")
    assert load(tmp_path).k == 3


def test_a_refused_save_leaves_what_was_there(tmp_path):
    save(tiny(k=3), tmp_path, format="sparsify")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FormatError, match="cannot express"):
        save(load(GOLDEN / "sae_lens" / "gated"), tmp_path, format="sparsify")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_unwritable_place_is_one_sentence():
    with pytest.raises(FormatError, match="could not be written"):
        save(tiny(), "/proc/nowhere/x")


def test_loaded_straight_onto_a_mesh():
    mesh = make_mesh(2, 4)
    sae, whole = load(GOLDEN / "sae_lens" / "topk", mesh=mesh), load(GOLDEN / "sae_lens" / "topk")
    shards = sae.W_dec.addressable_shards
    assert {s.data.shape for s in shards} == {(16, 16)}
    assert {s.data.shape for s in sae.W_enc.addressable_shards} == {(16, 16)}
    x = np.load(GOLDEN / "sae_lens" / "topk" / "io.npz")["x"]
    np.testing.assert_allclose(np.asarray(jax.jit(lambda s, a: s(a))(sae, x)), np.asarray(whole(x)), atol=1e-6)


def test_a_size_that_does_not_divide_is_replicated(tmp_path):
    save(tiny(s=6), tmp_path)
    sae = load(tmp_path, mesh=make_mesh(2, 4))
    assert {s.data.shape for s in sae.W_dec.addressable_shards} == {(6, 8)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_a_load_is_the_size_of_the_file(tmp_path):
    """The buffer that is read into becomes the array: no second copy is made."""
    import tracemalloc

    d, s = 256, 8192
    sae = make_sae({"W_enc": jnp.ones((d, s)), "b_enc": jnp.zeros(s), "W_dec": jnp.ones((s, d)), "b_dec": jnp.zeros(d)})
    save(sae, tmp_path, format="sae_lens")
    size = os.path.getsize(tmp_path / "sae_weights.safetensors")
    tracemalloc.start()
    before = anonymous()
    found = load(tmp_path)
    grown, peak = anonymous() - before, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.W_dec.shape == (s, d)
    assert peak < 1.2 * size
    assert grown < 1.2 * size


def anonymous():
    """Bytes of private memory that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def test_find_lists_dictionaries_once(tmp_path):
    for name, format in (("a", "jaxsae"), ("b/c", "sae_lens"), ("b/d", "gemma_scope")):
        save(tiny(), tmp_path / name, format=format)
    for i in range(2):
        save(tiny(), tmp_path / "e" / f"layer_{i}.safetensors", format="circuit_tracer")
    found = [p.relative_to(tmp_path).as_posix() for p in find(tmp_path)]
    assert found == ["a", "b/c", "b/d", "e/layer_0.safetensors", "e/layer_1.safetensors"]


def test_a_loaded_dictionary_is_a_pytree_like_any_other():
    sae = load(GOLDEN / "openmoss" / "clt_topk_decoder_norm")
    x = jnp.asarray(np.load(GOLDEN / "openmoss" / "clt_topk_decoder_norm" / "io.npz")["x"])
    y = jax.jit(lambda s, a: s(a))(sae, x)
    np.testing.assert_allclose(np.asarray(y), np.asarray(sae(x)), atol=1e-5)
    grads = jax.grad(lambda s, a: jnp.sum(s(a) ** 2), allow_int=True)(sae, x)
    assert np.any(np.asarray(grads.params["W_enc"]))
