"""Records: late by one, complete, readable after a kill; writers for people and for tools."""

import io
import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.errors import CheckpointError, ConfigError
from jaxsae.train.logs import JsonLines, Log, NotFinite, TensorBoard, WeightsAndBiases, read_records
from jaxsae.train.member_logs import MemberLogs
from jaxsae.train.progress import Progress
from jaxsae.train.run_dir import RunDir


class Memory:
    def __init__(self):
        self.records, self.closed = [], False

    def write(self, record):
        self.records.append(record)

    def close(self):
        self.closed = True


def test_records_are_written_one_push_late_and_flush_writes_the_rest():
    memory = Memory()
    log = Log([memory], tokens_per_step=8)
    log.push("train", 5, [{"loss": jnp.float32(2.0)}])
    log.push("heldout", 5, [{"loss": jnp.float32(1.0)}, {"loss": jnp.float32(4.0)}])
    assert memory.records == []
    log.push("train", 10, [{"loss": jnp.float32(1.0)}])
    assert [(r["kind"], r["step"], r["tokens"], r["loss"]) for r in memory.records] == [
        ("train", 5, 40, 2.0),
        ("heldout", 5, 40, 2.5),
    ]
    log.flush()
    assert memory.records[-1]["step"] == 10
    assert log.last["heldout"]["loss"] == 2.5


def test_a_loss_that_is_not_finite_is_recorded_and_raised():
    memory = Memory()
    log = Log([memory], tokens_per_step=8)
    log.push("train", 5, [{"loss": jnp.float32(np.nan)}])
    with pytest.raises(NotFinite) as found:
        log.push("train", 6, [{"loss": jnp.float32(1.0)}])
    assert found.value.step == memory.records[0]["step"] == 5


def test_a_writer_that_cannot_close_leaves_no_other_open():
    class Stuck(Memory):
        def close(self):
            raise OSError("no network")

    last = Memory()
    with pytest.raises(OSError, match="no network"):
        Log([Memory(), Stuck(), last], tokens_per_step=1).close()
    assert last.closed


def test_time_goes_on_from_earlier_sessions():
    assert 100 <= Log([], 1, seconds=100.0).seconds < 101


def test_json_lines_drop_what_came_after_the_checkpoint_and_half_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"kind": "train", "step": s}) for s in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"kind": "train", "st')
    log = JsonLines(path, until=2)
    log.write({"kind": "train", "step": 3, "loss": float("nan")})
    log.close()
    assert read_records(path) == [
        {"kind": "train", "step": 1},
        {"kind": "train", "step": 2},
        {"kind": "train", "step": 3, "loss": None},
    ]
    assert [json.loads(line) for line in path.read_text().splitlines()] == read_records(path)
    assert not list(tmp_path.glob("*.part"))


def test_a_full_disk_is_a_sentence_when_a_record_is_written_and_when_the_log_is_closed(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    log._file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115 - as JsonLines does
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        log.write({"kind": "train", "step": 1})
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        log.close()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "members").write_text("no folder")
    with pytest.raises(ConfigError, match=r"members/00.* cannot be made"):
        MemberLogs(RunDir(tmp_path), 2, 0)


RECORD = {"kind": "train", "step": 500, "tokens": 50_000, "time": 10.0, "fvu": 0.1234, "l0": 32.0, "dead_share": 0.015}


def test_without_a_terminal_progress_is_plain_lines():
    out = io.StringIO()
    progress = Progress(1000, stream=out)
    progress.write(RECORD | {"step": 1, "tokens": 100, "time": 5.0})
    progress.write(RECORD)
    progress.write({"kind": "heldout", "step": 500, "tokens": 50_000, "time": 10.0, "fvu": 0.2})
    progress.close()
    first, last = out.getvalue().splitlines()
    assert first == "train  1/1,000  fvu 0.123  l0 32  dead 1.5%"
    # 499 steps of 100 tokens in 5 s; 500 steps left
    assert last == "train  500/1,000  9.98k tokens/s  0:00:05 left  fvu 0.123  l0 32  dead 1.5%  held-out fvu 0.2"


def test_on_a_terminal_progress_is_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    progress = Progress(1000, stream=out)
    progress.write(RECORD)
    progress.close()
    assert "━" in out.getvalue()
    assert "fvu 0.123" in out.getvalue()


def test_missing_packages_are_named(monkeypatch, tmp_path):
    for name in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"tensorboardX; install jaxsae\[tracking\]"):
        TensorBoard(tmp_path, 0)
    with pytest.raises(ConfigError, match=r"wandb; install jaxsae\[tracking\]"):
        WeightsAndBiases("project", RunDir(tmp_path), {})


def test_tensorboard_gets_one_curve_per_metric_and_drops_steps_done_again(monkeypatch, tmp_path):
    class SummaryWriter:
        def __init__(self, folder, purge_step):
            self.purge_step, self.scalars = purge_step, []

        def add_scalar(self, name, value, step):
            self.scalars.append((name, value, step))

        def close(self):
            self.scalars.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    board = TensorBoard(tmp_path, 20)
    board.write(RECORD)
    board.write({"kind": "event", "step": 500, "tokens": 1, "time": 1.0, "event": "text"})
    board.close()
    assert board._writer.purge_step == 21
    scalars = [("train/fvu", 0.1234, 500), ("train/l0", 32.0, 500), ("train/dead_share", 0.015, 500), "closed"]
    assert board._writer.scalars == scalars


def test_weights_and_biases_goes_on_under_the_same_id(monkeypatch, tmp_path):
    started = []

    class Run:
        def log(self, values, step):
            started.append((values, step))

        def finish(self):
            started.append("finished")

    fake = types.SimpleNamespace(init=lambda **options: started.append((options["id"], options["resume"])) or Run())
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        writer = WeightsAndBiases("project", RunDir(tmp_path), {"k": 1})
        writer.write({"kind": "train", "step": 3, "tokens": 30, "time": 1.0, "fvu": 0.5})
        writer.close()
    once = [({"train/fvu": 0.5, "tokens": 30}, 3), "finished"]
    assert started == [started[0], *once] * 2
    assert started[0][1] == "allow"
