"""Memory: every temporary counts, what does not fit is not said to, and what is not known is not said to be 0."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import pytest

from jaxsae.parallel import MeshConfig, make_mesh
from jaxsae.plan import Chip, Target, open_target, page, plan
from jaxsae.plan.measure import Measured, demand, measure, peak_bytes
from jaxsae.plan.page import gib
from jaxsae.plan.setting import Setting, compile_step, exported_bytes
from jaxsae.plan.topology import CHIPS
from jaxsae.recipes import Programs, tied_l1, topk
from jaxsae.train import TrainConfig

D, S, B, K = 32, 1024, 64, 4
CONFIG = TrainConfig(topk.Config(d_in=D, d_sae=S, k=K), cache="none", train_batch_size_tokens=B)
BATCH = {"x": jax.ShapeDtypeStruct((B, D), "bfloat16")}
V5E = CHIPS["v5e"]
NEW_WORDS = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (36.45G) exceeds available HBM (15.75G). HLO module: jit_step."
)
OLD_WORDS = (
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 22.50G of 15.75G hbm. Exceeded hbm capacity by "
    "6.75G."
)


@pytest.fixture(scope="module")
def programs():
    return Programs(topk(D, S, K), make_mesh(1, 1, jax.devices()[:1]), BATCH)


@pytest.fixture(scope="module")
def local():
    return open_target("local")


@pytest.mark.parametrize(
    ("words", "bytes_"),
    [
        (NEW_WORDS, 36.45 * 2**30),
        (NEW_WORDS.replace("36.45G", "1.50T"), 1.5 * 2**40),
        (OLD_WORDS, 22.5 * 2**30),
        (OLD_WORDS.replace("hbm", "vmem"), None),
        ("RESOURCE_EXHAUSTED: words of a compiler to come", None),
    ],
    ids=["new", "terabytes", "old", "of another memory", "unknown"],
)
def test_the_demand_is_read_from_the_words_of_every_compiler(words, bytes_):
    assert demand(words) == (None if bytes_ is None else round(bytes_))


def test_off_a_tpu_the_peak_has_every_temporary():
    account = {"argument_size_in_bytes": 100, "output_size_in_bytes": 90, "alias_size_in_bytes": 80}
    memory = SimpleNamespace(**account, temp_size_in_bytes=1000, peak_memory_in_bytes=111)
    assert peak_bytes(memory, "cpu") == peak_bytes(memory, "gpu") == 1110
    assert peak_bytes(memory, "tpu") == 111
    del memory.peak_memory_in_bytes
    assert peak_bytes(memory, "tpu") == 1110


def test_a_local_plan_has_the_temporaries_that_the_compiler_tells(programs):
    memory = programs.lower(BATCH).compile().memory_analysis()
    found = measure(programs, BATCH)
    assert found.temporaries >= memory.temp_size_in_bytes > B * S
    assert found.peak == found.kept + found.temporaries


def test_it_fits_up_to_the_limit_and_nothing_is_said_without_one(programs):
    peak = measure(programs, BATCH).peak
    verdicts = {limit: measure(programs, BATCH, limit).fits for limit in (peak, peak - 1, None)}
    assert verdicts == {peak: True, peak - 1: False, None: None}


def test_cpu_devices_share_the_memory_of_the_machine(local):
    whole = local.limit(1)
    assert whole > 2**28
    assert local.limit(8) == whole / 8
    assert Target("local", (), Chip("gpu", 8e9)).limit(8) == 8e9
    assert Target("local", (), Chip("gpu")).limit(8) is None


def test_the_limit_of_a_device_is_its_share_of_what_is_used(local):
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(data=2, latent=4))
    found = plan(config, local, suggest=False)
    assert found.limit == local.shared / 8
    assert "out of its share of the machine's memory" in page(found)
    assert plan(CONFIG, local, suggest=False).limit == local.shared


def test_a_local_run_that_does_not_fit_is_told_so(local):
    small = dataclasses.replace(local, shared=1e5)
    found = plan(CONFIG, small, suggest=False)
    assert found.measured.fits is False
    assert found.measured.peak > 1e5
    assert f"**does not fit**: {gib(found.measured.peak)} of {gib(1e5)} GiB" in page(found)


def test_without_a_known_limit_no_page_says_that_it_fits(local):
    found = plan(CONFIG, dataclasses.replace(local, shared=0.0), suggest=False)
    assert found.measured.fits is None
    assert found.advice == ()
    assert "**no limit known**" in page(found)
    assert found.to_json()["fits"] is None


def test_a_demand_that_is_not_told_is_unknown_not_zero(local):
    found = plan(CONFIG, local, suggest=False)
    unknown = Measured(False, None, found.measured.parts, why="words of a compiler to come")
    text = page(dataclasses.replace(found, measured=unknown, chip=V5E, limit=V5E.memory))
    assert "**does not fit**: more than 15.75 GiB at the peak on one device; how much is unknown" in text
    assert "| peak | unknown |" in text
    assert "| temporaries at the peak | unknown |" in text
    assert not re.search(r"\b0\.00 of", text)


def test_small_is_not_shown_as_nothing():
    assert (gib(2**20), gib(0), gib(2**20, 3), gib(15.75 * 2**30)) == ("<0.01", "0.00", "0.001", "15.75")


@pytest.mark.parametrize("build", [topk, tied_l1], ids=["two matrices", "one matrix, exported as two"])
def test_host_memory_is_that_of_the_dictionary_in_float32(build):
    recipe = build(D, S, K) if build is topk else build(D, S)
    setting = Setting(recipe, make_mesh(1, 1, jax.devices()[:1]), B, "bfloat16")
    state = recipe.init(jax.random.key(0), {"x": jax.numpy.ones((B, D))})
    leaves = jax.tree.leaves(recipe.export(state).params)
    assert exported_bytes(setting) == sum(a.nbytes for a in leaves)
    assert exported_bytes(setting) == pytest.approx(4 * 2 * D * S, rel=0.05)


def test_the_page_tells_the_host_memory(local):
    found = plan(CONFIG, local, suggest=False)
    size = 4 * (2 * D * S + S + D) + 4  # and k
    assert found.exported == found.to_json()["exported"] == size
    line = "Host memory for the exported dictionary, in process 0 at the end of the run: 512.000 GiB, three times"
    assert line in page(dataclasses.replace(found, exported=512 * 2**30))


@pytest.mark.slow
def test_what_a_chip_too_small_would_need_is_what_a_larger_one_takes():
    """Half a million latents: more than v5e has, and the whole of it, not temporaries alone, is in its complaint."""
    pytest.importorskip("libtpu")
    recipe = topk(4096, 2**19, 64)

    def on(name):
        target = open_target(name)
        return compile_step(Setting(recipe, make_mesh(1, 4, target.devices), 4096, "bfloat16"))

    small, large = on("v5e:2x2"), on("v5p:2x2x1")
    assert (small.fits, large.fits) == (False, True)
    assert small.peak > small.kept > 0
    assert small.peak == pytest.approx(large.peak, rel=0.02)
