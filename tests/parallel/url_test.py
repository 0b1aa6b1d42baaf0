"""Several processes whose run directory lies behind a URL: no file system is shared between them."""

import importlib.util
import json
import pathlib
import re
import signal

from jaxsae.train import read_records

_spec = importlib.util.spec_from_file_location("group", pathlib.Path(__file__).with_name("multi_process_test.py"))
_group = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_group)
Group, words, cache, B = _group.Group, _group.words, _group.cache, _group.B
URL = "gs://bucket/run"


def done(gcs) -> list[int]:
    return sorted(int(found[1]) for n in gcs.names("bucket") if (found := re.search(r"done/(\d+)\.json", n)))


def test_two_processes_write_one_run_and_one_process_goes_on_with_it(tmp_path, cache, gcs):
    with Group(tmp_path / "two", 2, words(cache, URL, 100_000), devices=2) as two:
        two.until(lambda: len(done(gcs)) >= 2)
        two.processes[1].send_signal(signal.SIGTERM)
        assert two.statuses() == [143, 143], two.everything()
        stop = int(re.search(r"stopped by SIGTERM after step (\d+)", two.said(0))[1])
        told = (two.said(1) + two.said(1, "out")).splitlines()
        assert [line for line in told if "google_auth" not in line] == [], "only process 0 tells"
    assert done(gcs)[-1] == stop
    parts = [n for n in gcs.names("bucket") if f"checkpoints/{stop}/params.W_enc/c" in n]
    assert len(parts) == 4, "each device of both processes left its part"
    steps = stop + 6
    with Group(tmp_path / "one", 1, words(cache, URL, steps), devices=1) as one:
        assert one.statuses() == [0], one.everything()
    (tmp_path / "log.jsonl").write_text(gcs.text("bucket", "run/log.jsonl"))
    found = read_records(tmp_path / "log.jsonl")
    assert ("event", stop) in {(r["kind"], r["step"]) for r in found}
    assert json.loads(gcs.text("bucket", "run/train.json"))["steps"] == steps
