"""The hub: only needed files, each with its digest, kept for later; and one clear sentence when it cannot be."""

import importlib.util
import json
import os
import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae.io
from jaxsae.errors import FormatError
from jaxsae.io import hub
from jaxsae.sae import make_sae

_spec = importlib.util.spec_from_file_location("fake_hub", pathlib.Path(__file__).with_name("fake_hub.py"))
_fake = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fake)

WEIGHTS, CONFIG = b"weights" * 400, b'{"d_in": 3}'
FILES = {
    "README.md": b"# hello",
    ".gitattributes": b"*.pt lfs",
    "layer_1/cfg.json": CONFIG,
    "layer_1/sae_weights.safetensors": WEIGHTS,
    "layer_1/sparsity.safetensors": b"s" * 99,
    "layer_1/optimizer_0.pt": b"o" * 99,
    "layer_1/events.log": b"l",
    "layer_2/cfg.json": CONFIG,
    "layer_2/sae_weights.safetensors": WEIGHTS + b"2",
}
NEEDED = ["layer_1/cfg.json", "layer_1/sae_weights.safetensors"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A hub with one repository, and an empty home."""
    from huggingface_hub import constants, utils

    server = _fake.FakeHub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("JAXSAE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    utils.disable_progress_bars()
    if hasattr(utils, "reset_sessions"):
        utils.reset_sessions()
    server.commit("me/saes", FILES)
    yield server
    server.close()


def fetch(url, tmp_path):
    return hub.fetch(url, cache=tmp_path / "cache")


def upload(folder, url, monkeypatch):
    from huggingface_hub import constants

    with monkeypatch.context() as m:  # as HF_ENDPOINT set before the import does; older versions need it here
        m.setattr(constants, "ENDPOINT", os.environ["HF_ENDPOINT"])
        return hub.upload(folder, url)


def test_only_the_needed_files_come(world, tmp_path):
    folder = fetch("hf://me/saes/layer_1", tmp_path)
    assert world.fetched() == NEEDED
    assert (folder / "sae_weights.safetensors").read_bytes() == WEIGHTS
    assert (folder / "cfg.json").read_bytes() == CONFIG
    assert sorted(p.name for p in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_the_second_time_asks_once_and_fetches_nothing(world, tmp_path):
    first = fetch("hf://me/saes/layer_1", tmp_path)
    world.asked.clear()
    assert fetch("hf://me/saes/layer_1", tmp_path) == first
    assert len(world.asked) == 1


def test_a_new_commit_is_noticed(world, tmp_path):
    old = fetch("hf://me/saes/layer_1", tmp_path)
    world.commit("me/saes", {**FILES, "layer_1/cfg.json": b"{}"})
    new = fetch("hf://me/saes/layer_1", tmp_path)
    assert (old / "cfg.json").read_bytes() == CONFIG
    assert (new / "cfg.json").read_bytes() == b"{}"


@pytest.mark.parametrize("how", ["no network", "hub is down", "offline mode"])
def test_kept_files_serve_without_a_network(world, tmp_path, monkeypatch, capsys, how):
    from huggingface_hub import constants, utils

    first = fetch("hf://me/saes/layer_1", tmp_path)
    if how == "no network":
        world.close()
    elif how == "hub is down":
        world.failing["api/"] = (503, None)
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        if hasattr(utils, "reset_sessions"):
            utils.reset_sessions()
    assert fetch("hf://me/saes/layer_1", tmp_path) == first
    assert ("cannot be reached" in capsys.readouterr().err) == (how != "offline mode")
    with pytest.raises(FormatError, match=r"no earlier copy is kept|try again later"):
        fetch("hf://me/saes/layer_2", tmp_path)


def test_revisions(world, tmp_path):
    old = world.refs["me/saes"]["main"]
    world.commit("me/saes", {**FILES, "layer_1/cfg.json": b"[1]"}, branch="v2")
    for url, wanted in {
        "hf://me/saes/layer_1@v2": b"[1]",
        "hf://me/saes@v2/layer_1": b"[1]",
        f"hf://me/saes/layer_1@{old}": CONFIG,
    }.items():
        assert (fetch(url, tmp_path) / "cfg.json").read_bytes() == wanted
    world.asked.clear()
    fetch(f"hf://me/saes/layer_1@{old}", tmp_path)
    assert world.asked == []  # a commit never changes: nothing to ask


@pytest.mark.parametrize("name", NEEDED)
def test_a_damaged_download_is_refused_and_forgotten(world, tmp_path, name):
    world.damaged.add(name)
    with pytest.raises(FormatError, match=f"{name} was damaged on its way"):
        fetch("hf://me/saes/layer_1", tmp_path)
    world.damaged.clear()
    folder = fetch("hf://me/saes/layer_1", tmp_path)
    assert (folder.parent / name).read_bytes() == FILES[name]


def test_a_download_cut_short_is_never_taken_for_whole(world, tmp_path):
    world.cut.add(NEEDED[1])
    with pytest.raises(FormatError, match="hf://me/saes/layer_1: "):
        fetch("hf://me/saes/layer_1", tmp_path)
    world.cut.clear()
    assert (fetch("hf://me/saes/layer_1", tmp_path) / "sae_weights.safetensors").read_bytes() == WEIGHTS


def test_an_interrupted_fetch_is_not_a_kept_copy(world, tmp_path):
    world.failing["sae_weights"] = (403, None)
    with pytest.raises(FormatError, match="HTTP 403"):
        fetch("hf://me/saes/layer_1", tmp_path)
    world.close()
    with pytest.raises(FormatError, match="no earlier copy"):
        fetch("hf://me/saes/layer_1", tmp_path)


def test_a_lost_file_is_fetched_again(world, tmp_path):
    folder = fetch("hf://me/saes/layer_1", tmp_path)
    (folder / "cfg.json").resolve().unlink()
    (folder / "cfg.json").unlink()
    world.asked.clear()
    assert (fetch("hf://me/saes/layer_1", tmp_path) / "cfg.json").read_bytes() == CONFIG
    assert world.fetched() == ["layer_1/cfg.json"]


def test_a_file_comes_with_the_configurations_beside_it(world, tmp_path):
    path = fetch("hf://me/saes/layer_1/sae_weights.safetensors", tmp_path)
    assert path.name == "sae_weights.safetensors"
    assert path.read_bytes() == WEIGHTS
    assert world.fetched() == NEEDED


def test_weights_in_checkpoints_come_with_the_configuration_above(world, tmp_path):
    files = {"hyperparams.json": b"{}", "checkpoints/final.safetensors": b"f", "checkpoints/step_1.safetensors": b"1"}
    world.commit("me/moss", {f"L0/{n}": data for n, data in files.items()})
    wanted = ["L0/checkpoints/final.safetensors", "L0/hyperparams.json"]
    folder = fetch("hf://me/moss/L0", tmp_path)
    assert world.fetched() == wanted
    assert (folder / "checkpoints" / "final.safetensors").read_bytes() == b"f"
    fetch("hf://me/moss/L0/checkpoints/final.safetensors", tmp_path)
    assert (folder / "hyperparams.json").exists()


def test_the_root_of_a_repository(world, tmp_path):
    world.commit("me/one", {"params.npz": b"p", "README.md": b""})
    assert (fetch("hf://me/one", tmp_path) / "params.npz").read_bytes() == b"p"
    with pytest.raises(FormatError, match="found none; it has the folders layer_1, layer_2"):
        fetch("hf://me/saes", tmp_path)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hf://me/nothing/layer_1", "no such repository, or a private one"),
        ("hf://me/saes/layer_1@v9", "no revision 'v9'"),
        ("hf://me/saes/layer_3", r"no such path in the repository; did you mean 'layer_\d'"),
        ("hf://me/saes/layer_1/params.npz", "no such path in the repository"),
        ("hf://-me-/saes..git", "cannot be the name of a repository"),
        ("hf://me", "expected an address such as"),
        ("hf://me/saes/../../etc", "expected an address such as"),
        ("hf://me/saes@a/layer_1@b", "expected an address such as"),
        ("https://me/saes", "expected an address such as"),
    ],
)
def test_what_is_not_there_is_one_clear_sentence(world, tmp_path, url, said):
    with pytest.raises(FormatError, match=said) as e:
        fetch(url, tmp_path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "GatedRepo", "is gated"),
        (401, None, "private one|refused"),
        (500, None, "HTTP 500"),
        (429, None, "HTTP 429"),
    ],
)
def test_refusals_of_the_hub(world, tmp_path, status, code, said):
    world.failing["api/models/me/saes"] = (status, code)
    with pytest.raises(FormatError, match=said) as e:
        fetch("hf://me/saes/layer_1", tmp_path)
    assert "\n" not in str(e.value)


def test_upload_then_load_is_the_same_dictionary(world, tmp_path, monkeypatch):
    draw = np.random.default_rng(0).standard_normal
    params = {"W_enc": draw((4, 8)), "b_enc": draw(8), "W_dec": draw((8, 4)), "b_dec": draw(4)}
    sae = make_sae({n: jnp.asarray(a, jnp.float32) for n, a in params.items()}, k=2)
    jaxsae.io.save(sae, tmp_path / "sae")
    url = upload(tmp_path / "sae", "hf://me/new/layer_7", monkeypatch)
    assert url.startswith("hf://me/new/layer_7@")
    for where in (url, "hf://me/new/layer_7"):
        back = jaxsae.io.load(fetch(where, tmp_path))
        for name in params:
            np.testing.assert_array_equal(back.params[name], sae.params[name])
        assert back.k == 2
    stored = world.repos["me/new"][world.refs["me/new"]["main"]]
    assert stored.keys() == {f"layer_7/{p.relative_to(tmp_path / 'sae')}" for p in (tmp_path / "sae").rglob("*.*")}


def test_upload_of_one_file_keeps_what_is_there(world, tmp_path, monkeypatch):
    (tmp_path / "params.npz").write_bytes(b"npz")
    url = upload(tmp_path / "params.npz", "hf://me/saes/layer_3", monkeypatch)
    assert url.startswith("hf://me/saes/layer_3/params.npz@")
    stored = world.repos["me/saes"][world.refs["me/saes"]["main"]]
    assert stored == {**FILES, "layer_3/params.npz": b"npz"}


def test_uploads_that_cannot_be(world, tmp_path):
    with pytest.raises(FormatError, match="found nothing; check the path"):
        hub.upload(tmp_path / "nowhere", "hf://me/saes")
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "params.npz").write_bytes(b"npz")
    world.failing["api/repos/create"] = (403, None)
    with pytest.raises(FormatError, match="HTTP 403"):
        hub.upload(tmp_path / "sae", "hf://other/saes")
    world.close()
    with pytest.raises(FormatError, match="cannot be reached"):
        hub.upload(tmp_path / "sae", "hf://me/saes")


# ------------------------------------------------------------------------------------------------------ registry
REGISTRY = """
small-res:
  conversion_func: null
  model: gpt2-small
  repo_id: me/saes
  config_overrides: {dataset_path: text}
  saes:
  - {id: blocks.1, path: layer_1, norm_scaling_factor: 0.5}
  - {id: blocks.2, path: layer_2}
scope:
  conversion_func: gemma_2
  model: gemma-2-2b
  repo_id: me/scope
  saes:
  - {id: a/b, path: a/b/average_l0_5}
broken:
  saes: {id: 1}
"""


@pytest.fixture
def registry(tmp_path):
    (tmp_path / "registry.yaml").write_text(REGISTRY)
    return tmp_path / "registry.yaml"


def test_releases_resolve_to_addresses(registry, world, tmp_path):
    found = hub.resolve("small-res", "blocks.1", registry)
    assert (found.url, found.model, found.norm_scaling_factor) == ("hf://me/saes/layer_1", "gpt2-small", 0.5)
    assert (found.conversion, found.overrides) == (None, {"dataset_path": "text"})
    assert hub.resolve("scope", "a/b", registry).conversion == "gemma_2"
    assert hub.resolve("owner/repo", "some/folder", registry).url == "hf://owner/repo/some/folder"
    assert (fetch(found.url, tmp_path) / "cfg.json").read_bytes() == CONFIG


def test_load_takes_a_release_and_applies_what_its_registry_knows(registry, world):
    golden = pathlib.Path(__file__).parents[1] / "golden/sae_lens/standard_expected_average"
    names = ("cfg.json", "sae_weights.safetensors")
    world.commit("me/saes", {**FILES, **{f"layer_1/{name}": (golden / name).read_bytes() for name in names}})
    sae = jaxsae.io.load("small-res", "blocks.1", registry=registry)
    same = jaxsae.io.load(golden, norm_scaling_factor=0.5)
    plain = jaxsae.io.load(golden)
    x = np.linspace(-1, 1, sae.d_in, dtype=np.float32)[None]
    np.testing.assert_array_equal(sae(x), same(x))
    assert not np.allclose(sae(x), plain(x))


def test_a_json_registry_says_the_same(registry, tmp_path):
    import yaml

    (tmp_path / "registry.json").write_text(json.dumps(yaml.safe_load(REGISTRY)))
    for pair in (("small-res", "blocks.2"), ("scope", "a/b")):
        assert hub.resolve(*pair, tmp_path / "registry.json") == hub.resolve(*pair, registry)


def test_the_registry_of_an_installed_sae_lens_is_read_but_not_imported(registry, tmp_path, monkeypatch):
    if importlib.util.find_spec("sae_lens") is None:
        with pytest.raises(FormatError, match="install sae-lens, or give registry=FILE"):
            hub.resolve("small-res", "blocks.1")
    package = tmp_path / "site" / "sae_lens"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    registry.rename(package / "pretrained_saes.yaml")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    assert hub.resolve("small-res", "blocks.1").url == "hf://me/saes/layer_1"
    assert "sae_lens" not in sys.modules


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (("smal-res", "blocks.1"), "no release 'smal-res'; did you mean 'small-res'"),
        (("small-res", "blocks.3"), r"has no dictionary 'blocks.3'; did you mean 'blocks.\d'"),
        (("broken", "1"), "should have 'repo_id'"),
    ],
)
def test_what_a_registry_lacks_is_named(registry, pair, said):
    with pytest.raises(FormatError, match=said):
        hub.resolve(*pair, registry)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "!!python/object/apply:os.system ['true']", "\x00"])
def test_a_registry_that_is_none(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(FormatError, match=r"bad.yaml: expected"):
        hub.resolve("a", "b", tmp_path / "bad.yaml")
    with pytest.raises(FormatError, match="found nothing"):
        hub.resolve("a", "b", tmp_path / "absent.yaml")
