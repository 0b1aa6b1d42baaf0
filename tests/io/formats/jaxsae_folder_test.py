"""Our own format: every slot survives, damage is seen, and an interrupted save loses nothing."""

import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae.errors import FormatError
from jaxsae.io import load, save
from jaxsae.io.formats import jaxsae_folder
from jaxsae.sae import Meta, make_sae

GOLDEN = Path(__file__).parents[2] / "golden"


def tiny(k=2, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {"W_enc": (4, 6), "b_enc": (6,), "W_dec": (6, 4), "b_dec": (4,)}
    params = {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in arrays.items()}
    return make_sae(
        params, k=k, meta=Meta("topk", "tiny", "blocks.0.hook_mlp_out", (("note", "a"), ("widths", (1, 2))))
    )


@pytest.mark.parametrize("name", ["sae_lens/temporal_tied", "sae_lens/standard_bf16", "openmoss/clt_topk_decoder_norm",
                                  "openmoss/lorsa_relu", "sparsify/groupmax", "gemma_scope_2/clt_affine",
                                  "crosscoder_dictionary_learning/CrossCoder_normalized"])  # fmt: skip
def test_slots_and_arrays_come_back_bit_for_bit(name, tmp_path):
    sae = load(GOLDEN / name)
    save(sae, tmp_path / "x")
    back = load(tmp_path / "x")
    for slot in ("norm", "encoder", "dictionary", "readout", "rows", "meta"):
        assert getattr(back, slot) == getattr(sae, slot), slot
    assert jax.tree.structure(back) == jax.tree.structure(sae)
    for n in sae.params:
        assert back.params[n].dtype == sae.params[n].dtype
        np.testing.assert_array_equal(np.asarray(back.params[n]), np.asarray(sae.params[n]))


def test_meta_comes_back_hashable(tmp_path):
    sae = tiny()
    save(sae, tmp_path)
    back = load(tmp_path)
    assert back.meta == sae.meta
    assert hash(back.meta) == hash(sae.meta)
    jax.jit(lambda s, x: s(x))(back, jnp.ones((2, 4)))


def test_an_unknown_version_is_refused_by_name(tmp_path):
    save(tiny(), tmp_path)
    description = json.loads((tmp_path / "sae.json").read_text())
    (tmp_path / "sae.json").write_text(json.dumps(description | {"format_version": 7}))
    with pytest.raises(FormatError, match=rf"format_version.*jaxsae {re.escape(jaxsae.__version__)}.*found 7"):
        load(tmp_path)


def test_one_flipped_bit_is_seen(tmp_path):
    save(tiny(), tmp_path)
    raw = bytearray((tmp_path / "sae.safetensors").read_bytes())
    raw[-3] ^= 1
    (tmp_path / "sae.safetensors").write_bytes(raw)
    with pytest.raises(FormatError, match="altered or damaged"):
        load(tmp_path)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_an_interrupted_save_leaves_one_of_the_two(tmp_path, monkeypatch, step):
    """Killed between any two renames, the folder holds the old dictionary or the new, whole."""
    old, new = tiny(seed=1), tiny(seed=2)
    save(old, tmp_path)
    calls, replace = [], Path.replace

    def dies(self, target):
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        save(new, tmp_path)
    monkeypatch.undo()
    found = np.asarray(load(tmp_path).W_dec)
    assert any(np.array_equal(found, np.asarray(s.W_dec)) for s in (old, new))
    save(new, tmp_path)
    np.testing.assert_array_equal(np.asarray(load(tmp_path).W_dec), np.asarray(new.W_dec))


def test_nothing_but_numbers_is_written(tmp_path):
    sae = tiny()
    bad = make_sae({**sae.params, "b_enc": sae.b_enc.at[0].set(jnp.nan)})
    with pytest.raises(FormatError, match=r"b_enc.*finite"):
        save(bad, tmp_path / "x")
    assert not (tmp_path / "x" / "sae.json").exists()


def test_a_threshold_may_be_infinite(tmp_path):
    params = {n: v for n, v in tiny().params.items() if n != "k"}
    sae = make_sae({**params, "threshold": jnp.full(6, jnp.inf)})
    save(sae, tmp_path)
    assert np.isinf(np.asarray(load(tmp_path).threshold)).all()


def test_files_and_their_names(tmp_path):
    save(tiny(), tmp_path)
    assert sorted(os.listdir(tmp_path)) == [jaxsae_folder.DESCRIPTION, jaxsae_folder.WEIGHTS]
    description = json.loads((tmp_path / "sae.json").read_text())
    assert description["format"] == "jaxsae"
    assert description["encoder"]["selector"]["type"] == "selector.rank"
