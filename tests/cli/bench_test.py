"""`jaxsae bench kernels` and `train`: plausible numbers, a table the dispatch reads, wrong calls in one sentence."""

import json
import logging
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxsae import recipes
from jaxsae.cli import _bench_peers
from jaxsae.cli._bench_ops import OPS
from jaxsae.cli._bench_shapes import Shape
from jaxsae.cli._bench_timing import in_turn
from jaxsae.cli.bench_fleet import BenchFleet
from jaxsae.cli.bench_kernels import BenchKernels
from jaxsae.cli.bench_train import BenchTrain, with_dead
from jaxsae.errors import ConfigError
from jaxsae.kernels import _dispatch

SMALL = {"shape": "tiny", "batch_size": 32, "d_sae": 256, "d_in": 16, "k": 4, "repeats": 1}


def test_train_reports_the_step_beside_its_floor(tmp_path):
    result = BenchTrain(**SMALL, out=str(tmp_path / "t.json")).run()
    parts = result["floor"]
    assert parts["seconds"] == pytest.approx(parts["matmul"] + parts["optimizer_bytes"] + parts["gathered_bytes"])
    assert result["step_over_floor"] > 0
    assert result["tokens_per_second"]["step"] == pytest.approx(32 / result["seconds"]["step"]["median"])
    assert result["memory"]["temporary_bytes"] > 0
    assert json.loads((tmp_path / "t.json").read_text())["shape"]["d_sae"] == 256


def test_dead_latents_stay_dead():
    recipe = recipes.topk(d_in=16, d_sae=256, k=4)
    batch = {"x": jax.random.normal(jax.random.key(1), (32, 16))}
    state = with_dead(recipes.init(recipe, jax.random.key(0), batch), 64)
    for _ in range(3):
        state, metrics = recipes.step(recipe, state, batch)
        assert float(metrics["dead_share"]) == 0.25


def test_the_floor_by_hand():
    """Two matrices of 2 x 3, six passes of 4 bytes; one row of two entries touches rows of width 2 four times."""
    shape = Shape(1, 2, 3, 2)
    assert (shape.matmul_flops, shape.optimizer_bytes, shape.gathered_bytes) == (12, 288, 64)


def test_kernels_and_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(_dispatch, "TABLES", tmp_path / "dispatch")
    _dispatch.table.cache_clear()
    short = {**SMALL, "k": 2}  # counting serves 2 of 256
    result = BenchKernels(**short, tune=True).run()
    assert {"topk xla", "encode_topk xla", "encode_topk xla_counting", "sparse_decode xla"} <= set(result["seconds"])
    moved = 4 * (32 * 256 + 2 * 32 * 2)  # every score, and value and index of what was chosen
    assert result["floor"]["topk"] == pytest.approx(moved / result["bytes_per_second"])
    written = 4 * (16 * 256 + 32 * 16) / result["bytes_per_second"]  # the gradient of W, and the batch
    assert result["floor"]["encode_topk"] == pytest.approx(result["seconds"]["matmul"]["median"] + written)
    rows = _dispatch.table(_dispatch.device()[1])["encode_topk"]
    assert rows[0]["shape"] == {"B": 32, "D": 16, "S": 256, "K": 2}
    BenchKernels(**short, ops=("topk",), tune=True).run()
    again = _dispatch.table(_dispatch.device()[1])
    assert len(again["topk"]) == 1, "a shape measured again replaces its row"
    assert again["encode_topk"] == rows, "what was not measured stays"
    _dispatch.table.cache_clear()


def test_every_op_is_measured_and_a_table_of_it_is_found(tmp_path, monkeypatch, caplog):
    """Each row of the table stands at the very sizes and dtype that a call of the op asks for."""
    monkeypatch.setattr(_dispatch, "TABLES", tmp_path / "dispatch")
    for cache in (_dispatch.table, _dispatch._log_once):
        cache.cache_clear()
    ops = {p.parent.name for p in pathlib.Path(_dispatch.__file__).parent.glob("*/api.py")}
    assert set(OPS) == ops
    small = {**SMALL, "d_in": 128, "dtype": "bfloat16"}
    BenchKernels(**small, ops=tuple(ops), tune=True).run()
    shape = Shape(32, 128, 256, 4)
    with caplog.at_level(logging.INFO, "jaxsae.kernels"):
        for name in sorted(ops):
            monkeypatch.setattr(_dispatch, "REACH", 1.0)
            OPS[name](shape, jnp.dtype("bfloat16")).make(None)()
            assert f"{name} on" in caplog.text
            assert "(measured)" in caplog.records[-1].message, caplog.records[-1].message
    _dispatch.table.cache_clear()


def test_calls_are_taken_in_turn():
    order = []

    def call(name):
        return lambda: order.append(name) or float(len(order))

    found = in_turn({"a": call("a"), "b": call("b")}, 2)
    assert "".join(order) == "ababab"
    assert found["a"] == {"median": 4.0, "min": 3.0, "max": 5.0}, "the first round does not count"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (lambda: BenchTrain(**{**SMALL, "k": 300}), "k must lie between 1 and d_sae = 256, found 300"),
        (lambda: BenchTrain(**{**SMALL, "k": 0}), "k must be at least 1, found 0"),
        (lambda: BenchTrain(**SMALL, dead=1.5), "dead must be a share from 0 that leaves k latents alive, found 1.5"),
        (lambda: BenchTrain(**SMALL, dead=0.1, peers=True), "peers are measured without dead latents"),
        (lambda: BenchTrain(shape="smoll"), "no shape 'smoll'; did you mean 'smol'"),
        (lambda: BenchTrain(**{**SMALL, "repeats": 0}), "repeats = 0 measures nothing"),
        (lambda: BenchTrain(**SMALL, method="gated"), "expected method topk, batch_topk, matryoshka, found 'gated'"),
        (
            lambda: BenchTrain(**SMALL, method="matryoshka", only_peers=("sparsify",)),
            "peer 'sparsify' has no matryoshka; those that have: sae_lens, dictionary_learning",
        ),
        (lambda: BenchTrain(**SMALL, only_peers=("sparsifi",)), "no peer 'sparsifi'; did you mean 'sparsify'"),
        (
            lambda: BenchTrain(**SMALL, peers=True, peers_python="/nowhere/python"),
            "'/nowhere/python' cannot be run: No such",
        ),
        (lambda: BenchTrain(**SMALL, peers=True, dtype="bfloat16"), "peers are measured in float32 on the CPU"),
        (lambda: BenchTrain(**SMALL, out="/dev/null/a.json"), "the folder of '/dev/null/a.json' cannot be made"),
        (lambda: BenchFleet(**SMALL, out="/dev"), "'/dev' is a folder, expected the name of a file"),
        (lambda: BenchKernels(**SMALL, tune=True, implementation="xla"), "--tune compares implementations"),
        (lambda: BenchKernels(**SMALL, ops=("encode",)), "no op 'encode'; did you mean 'encode_topk'"),
        (
            lambda: BenchKernels(**SMALL, implementation="pallas_gpu", ops=("topk",)),
            "'pallas_gpu' runs on gpu, this is cpu",
        ),
    ],
)
def test_wrong_calls_are_refused_in_one_sentence(command, message):
    with pytest.raises(ConfigError, match=message):
        command().run()


def test_a_peer_that_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setattr(_bench_peers.importlib.util, "find_spec", lambda name: None)
    _bench_peers.serve("sparsify", "topk", Shape(2, 2, 2, 1), "cpu")
    assert "pip install eai-sparsify" in json.loads(capsys.readouterr().out)["error"]


def test_a_peer_answers_with_seconds(tmp_path, monkeypatch):
    """The parent's side of the pipe, against a stand-in that talks before it answers."""
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nprint('loading'); print('{{\"ready\": {{\"threads\": 2}}}}', flush=True)\n"
        'for _ in sys.stdin: print(\'{"seconds": 0.5, "peak_bytes": 7}\', flush=True)\n'
    )
    script.chmod(0o755)
    peer = _bench_peers.Peer("sparsify", Shape(2, 2, 2, 1), str(script))
    peer.ready()
    assert peer.step() == peer.step() == 0.5
    assert peer.about == {"threads": 2, "peak_bytes": 7}
    peer.close()
    assert isinstance(peer.process, subprocess.Popen)
    assert peer.process.returncode == 0


def test_a_peer_that_died_between_two_steps_is_an_error(tmp_path):
    """A broken pipe would pass for that of `jaxsae ... | head`: status 0, and nothing said."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nprint('{{\"ready\": {{}}}}', flush=True)\n")
    script.chmod(0o755)
    peer = _bench_peers.Peer("sparsify", Shape(2, 2, 2, 1), str(script))
    peer.ready()
    peer.process.wait()
    with pytest.raises(ConfigError, match=r"the process of peer 'sparsify' ended early \(status 0\)"):
        peer.step()
    peer.close()
