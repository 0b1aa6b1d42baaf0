import dataclasses

import jax
import jax.numpy as jnp
import pytest
import yaml

from jaxsae.evals import EvalConfig, FeaturesConfig
from jaxsae.io import save
from jaxsae.report import Subject, build_report
from jaxsae.sae import Meta, make_sae
from jaxsae.testing.tiny_cache import sentences, tiny_cache
from jaxsae.testing.tiny_host import tiny_host

SITE = "blocks.1.hook_resid_post"


def random_sae(seed, d_sae=480):
    W = jax.random.normal(jax.random.key(seed), (32, d_sae)) / 6
    params = {"W_enc": W, "b_enc": jnp.zeros(d_sae), "W_dec": 0.3 * W.T, "b_dec": jnp.zeros(32)}
    return make_sae(params, k=8, meta=Meta(site=SITE, recipe="topk"))


@pytest.fixture(scope="session")
def host():
    return tiny_host(n_layers=2)


@pytest.fixture(scope="session")
def cache(host, tmp_path_factory):
    return tiny_cache(tmp_path_factory.mktemp("report") / "acts", host, [SITE], documents=sentences(60))


@pytest.fixture(scope="session")
def log():
    return tuple(
        {"kind": kind, "step": i, "tokens": 100 * i, "time": 0.5 * i, "loss": 9.0 / i, "fvu": 1.0 / i, "l0": 8.0}
        for i in range(1, 41)
        for kind in (("train", "heldout") if i % 10 == 0 else ("train",))
    )


@pytest.fixture(scope="session")
def subject(host, cache, log):
    return Subject("a <b>run</b>", random_sae(3), cache, host, log=log)


@pytest.fixture(scope="session")
def built(subject, tmp_path_factory):
    """The report of one subject: (page, report.json)."""
    page = tmp_path_factory.mktemp("page") / "report.html"
    config = FeaturesConfig(minimum=2)
    return page, build_report(subject, page, config=config, evaluation=EvalConfig(ce_tokens=100, bootstrap=20))


@pytest.fixture(scope="session")
def compared(subject, tmp_path_factory):
    """The report of two subjects: (page, report.json)."""
    page = tmp_path_factory.mktemp("pair") / "report.html"
    other = dataclasses.replace(subject, name="other", sae=random_sae(4, 400), log=subject.log[:20])
    config = FeaturesConfig(minimum=2, top=2, per_quantile=1)
    return page, build_report(subject, page, other, config=config, evaluation=EvalConfig(ce_tokens=0))


@pytest.fixture
def run_folder(tmp_path, cache, log):
    """A run directory as training leaves it."""
    import json

    folder = tmp_path / "run-7"
    folder.mkdir()
    config = {"type": "train", "recipe": {"type": "recipe.topk", "k": 8}, "cache": cache.path, "hook_name": SITE}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
    save(random_sae(3), folder / "sae")
    return folder
