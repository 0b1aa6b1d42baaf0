"""Every fault of every format ends in one clear error; nothing crashes, runs, or takes more memory than the file."""

import hashlib
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest

from jaxsae.errors import JaxsaeError
from jaxsae.io import formats, load
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._registry import format_called, recognised
from jaxsae.testing.malformed import PROOF, Spec, variants

GOLDEN = Path(__file__).parents[2] / "golden"
BAD_SIZE = [-1, 0, 15, "16", 16.5, 10**12]
BAD_K = [-1, 0, 65, 1.5, "6", 10**9]


def renew_digest(folder):
    """Makes the description vouch for the altered weights, so that what they hold is looked at."""
    description = json.loads((folder / "sae.json").read_text())
    digest = hashlib.sha256((folder / "sae.safetensors").read_bytes()).hexdigest()
    description["weights"]["sha256"] = digest
    (folder / "sae.json").write_text(json.dumps(description))


#: format -> (a sound example, what is known of it, options it needs)
EXAMPLES = {
    "jaxsae": (
        "",
        Spec(
            ("sae.safetensors",),
            "sae.json",
            after=lambda folder: renew_digest(folder),
            used=("format_version", "weights", "weights.sha256", "norm", "encoder", "encoder.encoder", "meta.host"),
            required=("format", "format_version", "weights", "weights.sha256", "norm.type", "encoder", "dictionary"),
            values={
                "format_version": [2, 0, 99],
                "format": ["other"],
                "encoder.type": ["norm.none", "encode.magic"],
                "encoder.encoder.d_in": [15],
                "dictionary.d_sae": [63],
                "weights.sha256": ["0" * 64],
            },
        ),
        {},
    ),
    "sae_lens": (
        "sae_lens/topk",
        Spec(
            ("sae_weights.safetensors",),
            "cfg.json",
            used=("architecture", "d_in", "d_sae", "dtype", "apply_b_dec_to_input", "normalize_activations", "k"),
            required=("architecture", "d_in", "d_sae", "dtype", "k"),
            values={
                "d_in": BAD_SIZE,
                "d_sae": BAD_SIZE,
                "k": BAD_K,
                "dtype": ["int8", "float8"],
                "architecture": ["top-k", "gated", "transcoder", "matching_pursuit", "temporal"],
                "normalize_activations": ["batch"],
                "reshape_activations": ["hook_q", 3],
            },
        ),
        {},
    ),
    "sparsify": (
        "sparsify/skip_transcoder",
        Spec(
            ("sae.safetensors",),
            "cfg.json",
            used=("activation", "num_latents", "k", "skip_connection", "transcode", "d_in"),
            required=("d_in",),
            values={
                "d_in": BAD_SIZE,
                "k": BAD_K,
                "num_latents": [-64, 63, 0],
                "activation": ["relu"],
                "skip_connection": [False],
                "signed": [True],
            },
        ),
        {},
    ),
    "openai": ("openai_sparse_autoencoder/relu", Spec(("autoencoder.pt",), optional=()), {}),
    "dictionary_learning": (
        "dictionary_learning/BatchTopKSAE/trainer_0",
        Spec(
            ("ae.pt",),
            "config.json",
            used=("trainer", "trainer.dict_class", "trainer.k", "trainer.activation_dim"),
            required=("trainer", "trainer.dict_class"),
            values={
                "trainer.k": [5, -1, 65, "6"],
                "trainer.dict_class": ["AutoEncoder", "Nothing"],
                "trainer.activation_dim": [15],
                "trainer.dict_size": [63],
            },
        ),
        {},
    ),
    "crosscoder": (
        "crosscoder_dictionary_learning/CrossCoder_hub",
        Spec(
            ("model.safetensors",),
            "config.json",
            optional=(
                "activation_mean",
                "activation_std",
                "activation_global_scale",
                "target_rms",
                "code_normalization_id",
            ),
            used=("encoder_layers", "num_layers", "dict_size", "activation_dim"),
            values={"num_layers": [3], "dict_size": [63], "activation_dim": [15], "encoder_layers": [[0]]},
        ),
        {},
    ),
    "gemma_scope": ("gemma_scope/sae", Spec(("params.npz",), any_width=("W_enc",)), {}),
    "gemma_scope_2": (
        "gemma_scope_2/transcoder_affine",
        Spec(
            ("params.safetensors",),
            "config.json",
            used=("architecture", "affine_connection", "model_name"),
            values={"affine_connection": [False], "architecture": ["relu"]},
        ),
        {},
    ),
    "llama_scope": (
        "openmoss_legacy/llama_scope_jumprelu",
        Spec(
            ("checkpoints/final.safetensors",),
            "hyperparams.json",
            used=("d_model", "d_sae", "act_fn", "norm_activation", "jump_relu_threshold", "dtype", "use_glu_encoder"),
            required=("d_model",),
            values={
                "d_model": BAD_SIZE,
                "d_sae": [63, -1],
                "act_fn": ["gelu"],
                "norm_activation": ["batch-wise", "layer"],
                "dataset_average_activation_norm": [None, {}, {"in": 0, "out": 1}, {"in": -1, "out": 1}],
            },
        ),
        {},
    ),
    "llamascopium": (
        "openmoss/sae_jumprelu_dataset_norm",
        Spec(
            ("sae_weights.safetensors",),
            "config.json",
            used=("sae_type", "d_model", "expansion_factor", "act_fn", "norm_activation", "use_decoder_bias"),
            required=("sae_type", "d_model", "expansion_factor", "hook_point_in"),
            values={
                "d_model": BAD_SIZE,
                "expansion_factor": [0, -4, 3.9, "4"],
                "sae_type": ["transcoder", "clt", "molt", "lorsa", "crosscoder"],
                "act_fn": ["gelu", "relu"],
                "norm_activation": ["batch-wise"],
                "hook_point_in": ["elsewhere"],
            },
        ),
        {},
    ),
    "circuit_tracer": (
        "circuit_tracer/clt_jumprelu",
        Spec(tuple(f"W_{side}_{i}.safetensors" for side in ("enc", "dec") for i in range(2))),
        {},
    ),
    "overcomplete": (
        "overcomplete/JumpSAE",
        Spec(("state_dict.pt",), optional=("encoder.final_block.0.bias",)),
        {"kind": "JumpSAE"},
    ),
}


def prepared(name: str, folder: Path) -> Path:
    """A copy of a sound example without the files that belong to the fixture, not to the format."""
    source = folder / name
    if name == "jaxsae":
        from jaxsae.io import save

        save(load(GOLDEN / "sae_lens" / "topk"), source)
        return source
    shutil.copytree(GOLDEN / EXAMPLES[name][0], source)
    for extra in ("about.json", "io.npz", "model.pt"):
        (source / extra).unlink(missing_ok=True)
    return source


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    return {name: prepared(name, folder) for name in EXAMPLES}


def test_every_format_has_an_example():
    assert set(EXAMPLES) == set(formats())


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_fault_is_refused_in_one_sentence(name, sound, tmp_path):
    source, (_, spec, options) = sound[name], EXAMPLES[name]
    load(source, **options)  # the example itself is sound
    reader = format_called(name)
    faults = list(variants(source, spec))
    wrong = []
    for i, fault in enumerate(faults):
        target = tmp_path / str(i)
        fault.make(source, target)
        size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
        tracemalloc.start()
        try:
            load(target, **options)
            wrong.append(f"{fault.name}: was accepted")
        except JaxsaeError as e:
            text = str(e)
            if "\n" in text or len(text) > 1000:
                wrong.append(f"{fault.name}: not one sentence: {text[:200]!r}")
            if fault.file and os.path.basename(fault.file) not in text and target.name not in text:
                wrong.append(f"{fault.name}: does not name the file: {text}")
            if fault.key and fault.key not in text:
                wrong.append(f"{fault.name}: does not name the key: {text}")
        except Exception as e:
            wrong.append(f"{fault.name}: {type(e).__name__}: {e}")
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        if peak > 2 * size + 2**20:
            wrong.append(f"{fault.name}: took {peak} bytes for files of {size}")
        shutil.rmtree(target)
    assert reader is not None
    assert not os.path.exists(PROOF), "a pickle ran code"
    assert not wrong, "\n".join(wrong)
    assert len(faults) >= 40, f"only {len(faults)} faults"
    assert len({f.kind for f in faults}) >= 10, sorted({f.kind for f in faults})


def test_recognition_needs_no_sound_content(sound):
    for name, folder in sound.items():
        assert recognised(Listing(folder)) == [name]
