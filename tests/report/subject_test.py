"""Finding what belongs to a dictionary, and saying clearly what does not."""

import json

import jax
import pytest

from jaxsae import hosts
from jaxsae.cli.eval import Eval
from jaxsae.errors import CheckpointError, ConfigError, DataError
from jaxsae.evals import EvalConfig, FeaturesConfig
from jaxsae.hosts import HostMesh
from jaxsae.report import build_report, evaluated, open_subject
from jaxsae.testing.tiny_host import tiny_host


def test_a_run_knows_its_surroundings(run_folder, host, cache, log):
    out = open_subject(run_folder, host=host)
    assert (out.name, out.cache.path, out.site) == ("run-7", cache.path, "blocks.1.hook_resid_post")
    assert out.log == log
    assert out.evaluation is None


def test_host_and_dictionary_are_read_onto_the_mesh_asked_for(run_folder, host, monkeypatch, tmp_path):
    loads = []

    def load(name, dtype, mesh):
        loads.append((name, dtype))
        found = mesh(host.model)
        return host if found is None else hosts.place(host, found)

    monkeypatch.setattr("jaxsae.hosts.load", load)
    spread = open_subject(run_folder, mesh=HostMesh(data=2, latent=4))
    assert loads == [(host.name, "float32")]  # both as the cache says
    assert spread.mesh.mesh.shape == {"run": 1, "data": 2, "latent": 4}
    assert spread.host.params["blocks"]["W_in"].addressable_data(0).shape[2] == host.model.d_mlp // 4
    assert spread.sae.W_dec.addressable_data(0).shape == (480 // 4, 32)
    assert open_subject(run_folder, dtype="bfloat16").mesh is None  # CPU devices, none asked for
    assert loads[1] == (host.name, "bfloat16")
    alone = open_subject(run_folder, host=None, mesh=HostMesh(latent=8))
    assert alone.sae.W_dec.addressable_data(0).shape == (480 // 8, 32)
    cards = FeaturesConfig(minimum=2, latents=20)
    numbers = EvalConfig(ce_tokens=100, bootstrap=20)
    pages = [
        build_report(open_subject(run_folder, host=h, mesh=s), tmp_path / f"{i}.html", config=cards, evaluation=numbers)
        for i, (h, s) in enumerate([(host, HostMesh()), ("auto", HostMesh(data=2, latent=4))])
    ]
    for name in ("sae_ce", "kl", "fvu", "l0", "latents_shown"):
        assert pages[1][name] == pytest.approx(pages[0][name], rel=2e-4)


def test_a_mesh_that_cannot_be_is_one_sentence(run_folder, host):
    with pytest.raises(ConfigError, match=r"mesh\.latent = 16 does not divide the 8 devices"):
        open_subject(run_folder, host=None, mesh=HostMesh(latent=16))
    with pytest.raises(ConfigError, match="needs 4 devices, found 8"):
        open_subject(run_folder, host=None, mesh=HostMesh(data=1, latent=4))
    with pytest.raises(ConfigError, match="needs 3 devices, found 8"):
        open_subject(run_folder, host=host, mesh=HostMesh(data=3))


def test_a_relative_cache_is_found_from_any_folder(run_folder, cache, monkeypatch, tmp_path):
    (run_folder.parent / "acts").symlink_to(cache.path)
    text = (run_folder / "config.yaml").read_text().replace(cache.path, "acts")
    (run_folder / "config.yaml").write_text(text)
    monkeypatch.chdir("/")
    assert open_subject(run_folder, host=None).cache.path.endswith("acts")


def test_an_evaluation_counts_only_for_the_weights_it_was_made_with(run_folder, subject):
    numbers = evaluated(subject, EvalConfig(ce_tokens=0))
    (run_folder / "eval.json").write_text(json.dumps(numbers))
    assert open_subject(run_folder, host=None).evaluation == numbers
    (run_folder / "eval.json").write_text(json.dumps({**numbers, "fingerprint": "0" * 16}))
    assert open_subject(run_folder, host=None).evaluation is None
    (run_folder / "eval.json").write_text("{half a")
    assert open_subject(run_folder, host=None).evaluation is None


def test_any_dictionary_with_a_cache_will_do(run_folder, cache, host, tmp_path):
    sae = open_subject(run_folder / "sae", cache=cache, host=host)
    assert sae.folder is None
    loose = (sae.sae, None, cache)
    report = build_report(
        loose, tmp_path / "x.html", config=FeaturesConfig(latents=5), evaluation=EvalConfig(ce_tokens=0)
    )
    assert report["latents_shown"] == 5
    assert "sae_ce" not in report


def test_what_is_missing_is_named(run_folder, tmp_path, host, cache):
    with pytest.raises(CheckpointError, match="no run and no dictionary"):
        open_subject(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="name a cache"):
        open_subject(run_folder / "sae")
    with pytest.raises(DataError, match="other weights"):
        open_subject(run_folder, host=tiny_host(jax.random.key(9), n_layers=2))
    (run_folder / "sae").rename(run_folder / "old")
    with pytest.raises(CheckpointError, match="no dictionary yet"):
        open_subject(run_folder, host=host)


def test_a_failure_changes_no_file(subject, tmp_path, monkeypatch):
    page = tmp_path / "report.html"
    page.write_text("precious")
    with pytest.raises(ConfigError, match=r"something\.html"):
        build_report(subject, tmp_path / "report")
    monkeypatch.setattr("jaxsae.report.build.page_data", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_report(subject, page, evaluation=None)
    assert page.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [page]


def test_a_place_that_cannot_be_is_refused_before_the_work(subject, run_folder, monkeypatch):
    for work in ("jaxsae.report.build._numbers", "jaxsae.report.evaluated"):
        monkeypatch.setattr(work, lambda *a: 1 / 0)
    with pytest.raises(ConfigError, match=r"the folder of '/dev/null/a\.html' cannot be made"):
        build_report(subject, "/dev/null/a.html")
    with pytest.raises(ConfigError, match=r"the folder of '/dev/null/a\.json' cannot be made"):
        Eval(path=str(run_folder), host="none", output="/dev/null/a.json").run()
