"""Finding what belongs to a dictionary, and saying clearly what does not."""

import json

import jax
import pytest

from jaxsae.errors import CheckpointError, ConfigError, DataError
from jaxsae.evals import EvalConfig, FeaturesConfig
from jaxsae.report import build_report, evaluated, open_subject
from jaxsae.testing.tiny_host import tiny_host


def test_a_run_knows_its_surroundings(run_folder, host, cache, log):
    out = open_subject(run_folder, host=host)
    assert (out.name, out.cache.path, out.site) == ("run-7", cache.path, "blocks.1.hook_resid_post")
    assert out.log == log
    assert out.evaluation is None


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
