"""Runs of 2 and 4 processes on this machine: the commands as a cluster would start them, killed and continued."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

from jaxsae import load, recipes
from jaxsae.cli import harvest as harvest_command
from jaxsae.data import HarvestConfig, open_cache
from jaxsae.evals.evaluate import EvalConfig, evaluate
from jaxsae.sae import make_sae
from jaxsae.testing.conformance import assert_close
from jaxsae.testing.tiny_cache import sentences, tiny_cache
from jaxsae.testing.tiny_host import tiny_host
from jaxsae.train import CheckpointPolicy, EvaluatePolicy, LogPolicy, TrainConfig, read_records, train

B = 64
#: Seconds that any group of processes may take before the test gives up.
LIMIT = 150
#: How jax's abort ends a process.
ABORTED = 1 if jax.__version_info__ < (0, 8) else -signal.SIGABRT
#: What jax's collectives say when they begin, without the numbers.
GLOO = "[Gloo] Rank is connected to peer ranks. Expected number of connected peer ranks is :"


class Group:
    """N processes of one run, on the loopback address."""

    def __init__(self, folder: pathlib.Path, count: int, words: list[str], devices: int = 1, only=None, each=None):
        self.folder, self.began = folder, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        told = {"JAXSAE_COORDINATOR": f"127.0.0.1:{port}", "JAXSAE_PROCESS_COUNT": str(count)}
        common = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "JAXSAE_HEARTBEAT_SECONDS": "10"}
        self.processes = []
        for i in range(count):
            own = {**told, "JAXSAE_PROCESS_ID": str(i)} if each is None else each(i, port)
            env = {**os.environ, **common, **own, **((only or {}).get(i, {}))}
            with open(self.file(i, "out"), "w") as out, open(self.file(i, "err"), "w") as err:
                self.processes.append(subprocess.Popen([sys.executable, *words], env=env, stdout=out, stderr=err))

    def file(self, i: int, name: str) -> pathlib.Path:
        return self.folder / f"{i}.{name}"

    def said(self, i: int, name: str = "err") -> str:
        """What a process wrote, without the lines of jax's collectives.

        Its threads write those in pieces, so that any part of one may come on a line of its own.
        """
        text = self.file(i, name).read_text()
        gloo = set(GLOO.split()) if "[Gloo]" in text else set()
        lines = (line for line in text.splitlines() if "[Gloo]" not in line)
        return "\n".join(
            line for line in lines if not gloo or any(w not in gloo for w in line.split() if not w.isdigit())
        )

    def until(self, there) -> None:
        """Waits for something that the processes do."""
        while not there():
            assert time.monotonic() - self.began < LIMIT, self.everything()
            assert all(p.poll() is None for p in self.processes), self.everything()
            time.sleep(0.1)

    def statuses(self, within: float = LIMIT) -> list[int]:
        """How all of them ended."""
        try:
            end = time.monotonic() + within
            return [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            pytest.fail(f"not ended after {within} s:\n{self.everything()}")

    def everything(self) -> str:
        return "\n".join(f"--- {i}\n{self.said(i)}" for i in range(len(self.processes)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for p in self.processes:
            p.kill()
            p.wait()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# -------------------------------------------------------------------------------------------------------------- train
@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny_cache(tmp_path_factory.mktemp("several") / "acts", tiny_host(), documents=sentences(40))


def words(cache, output, steps: int, *more: str) -> list[str]:
    every = ["--checkpoint.every-steps", "10", "--log.every-steps", "5", "--evaluate.every-steps", "20"]
    sizes = ["--training-tokens", str(steps * B), "--train-batch-size-tokens", str(B)]
    recipe = ["recipe:topk", "--recipe.d-sae", "64", "--recipe.k", "4"]
    return ["-m", "jaxsae", "train", "--cache", cache.path, "--output", str(output), *sizes, *every, *more, *recipe]


def step_of(output) -> int:
    return max((r["step"] for r in read_records(output / "log.jsonl")), default=0)


def saved(output) -> int:
    """The newest checkpoint that is complete."""
    folder = output / "checkpoints"
    return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=0)


def test_a_stop_is_agreed_on_and_another_number_of_processes_on_another_mesh_goes_on(tmp_path, cache):
    output = tmp_path / "run"
    with Group(tmp_path / "two", 2, words(cache, output, 100_000), devices=2) as two:
        two.until(lambda: step_of(output) >= 15)
        two.processes[1].send_signal(signal.SIGTERM)
        assert two.statuses() == [143, 143], two.everything()
        done = int(re.search(r"stopped by SIGTERM after step (\d+)", two.said(0))[1])
        assert two.said(1) == two.said(1, "out") == "", "only process 0 tells"
    assert saved(output) == step_of(output) == done
    steps = done + 6
    mesh = ("--mesh.data", "2", "--mesh.latent", "2")
    with Group(tmp_path / "four", 4, words(cache, output, steps, *mesh)) as four:
        assert four.statuses() == [0] * 4, four.everything()
        assert "".join(four.said(i) + four.said(i, "out") for i in (1, 2, 3)) == ""
    kinds = [(r["kind"], r["step"]) for r in read_records(output / "log.jsonl")]
    assert len(kinds) == len(set(kinds))
    assert ("event", done) in kinds
    alone = train(
        TrainConfig(
            recipes.topk.Config(d_sae=64, k=4),
            cache.path,
            str(tmp_path / "alone"),
            training_tokens=steps * B,
            train_batch_size_tokens=B,
            log=LogPolicy(every_steps=5, progress=False),
            checkpoint=CheckpointPolicy(every_steps=1000),
            evaluate=EvaluatePolicy(every_steps=20),
        )
    )
    assert_close(load(output / "sae").params, alone.sae.params, 2e-5)
    there = json.loads((output / "train.json").read_text())
    for kind in ("train", "heldout"):
        assert there[kind]["fvu"] == pytest.approx(alone.metrics[kind]["fvu"], rel=1e-4)


def test_a_killed_process_ends_the_others_with_a_sentence_and_the_same_command_goes_on(tmp_path, cache):
    """On the way one process's file of the newest checkpoint is cut short: both go back to the one before."""
    output, newest = tmp_path / "run", 0
    for victim, other in ((1, 0), (0, 1)):
        before = step_of(output)
        with Group(tmp_path / f"kill-{victim}", 2, words(cache, output, 100_000)) as two:
            two.until(lambda before=before: step_of(output) >= before + 25 and saved(output) >= 20)
            two.processes[victim].kill()
            status = two.statuses(within=40)[other]
            assert status in (75, ABORTED), two.everything()
            told = "ended or cannot be reached" in two.said(other)  # on a busy machine jax may abort before we speak
            assert told or (status == ABORTED and "coordination service" in two.said(other)), two.everything()
            assert "Traceback" not in two.said(other)
        if not newest:
            newest = saved(output)
            own = (output / "checkpoints" / str(newest) / "params" / "ocdbt.process_1" / "d").iterdir()
            os.truncate(max(own, key=lambda p: p.stat().st_size), 1000)
    damaged, goes_on = (r["event"] for r in read_records(output / "log.jsonl") if r["kind"] == "event")
    assert damaged.startswith(f"checkpoint {newest} is damaged and was set aside")
    assert goes_on == f"continued from the checkpoint of step {newest - 10}"
    assert (output / "checkpoints" / f"damaged-{newest}").is_dir()


def test_a_sweep_is_spread_over_processes_and_goes_on_on_another_mesh(tmp_path, cache):
    """First each process steps runs of its own, then every run is spread over both; one of the runs diverges."""
    output, sweep = tmp_path / "run", ("--sweep", "lr=1e-3,1e30", "k=2,4")
    with Group(tmp_path / "own", 2, words(cache, output, 12, *sweep)) as own:
        assert own.statuses() == [0, 0], own.everything()
        assert "mesh run 2 x data 1 x latent 1" in own.said(0)
        assert "".join((own.said(1), own.said(1, "out"))) == ""
    with Group(tmp_path / "both", 2, words(cache, output, 20, *sweep, "--mesh.latent", "2")) as both:
        assert both.statuses() == [0, 0], both.everything()
        assert "mesh data 1 x latent 2" in both.said(0)
    alone = train(
        TrainConfig(
            recipes.topk.Config(d_sae=64, k=4),
            cache.path,
            str(tmp_path / "alone"),
            training_tokens=20 * B,
            train_batch_size_tokens=B,
            sweep=("lr=1e-3,1e30", "k=2,4"),
            log=LogPolicy(every_steps=5, progress=False),
        )
    )
    there = json.loads((output / "train.json").read_text())
    assert [r.get("stopped") for r in there["runs"]] == [r.get("stopped") for r in alone.summary["runs"]]
    assert there["best"] == alone.summary["best"]
    for i in (0, 1):
        assert_close(load(output / f"members/0{i}/sae").params, load(alone.run_dir.member(i).sae).params, 2e-5)
        steps = [r["step"] for r in read_records(output / f"members/0{i}/log.jsonl") if r["kind"] == "train"]
        assert steps == [1, 5, 10, 12, 15, 20]


def test_unlike_processes_are_named(tmp_path, cache):
    """Another option is simulated by the environment of a command's own file, another version by a false record."""
    record = tmp_path / "false" / "optax-0.0.1.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 0.0.1\n")
    path = os.pathsep.join(filter(None, (str(record.parent), os.environ.get("PYTHONPATH"))))
    code = "import os, sys; from jaxsae.cli.main import main; main(sys.argv[1:] + os.environ.get('MORE', '').split())"
    call = ["-c", code, *words(cache, tmp_path / "run", 10)[2:]]
    with Group(tmp_path / "unlike", 2, call, only={1: {"PYTHONPATH": path, "MORE": "--recipe.lr 0.5"}}) as two:
        assert two.statuses() == [1, 1], two.everything()
        said = two.said(0)
    assert said.startswith("jaxsae: error: the processes were not started alike: version.optax is ")
    assert "and '0.0.1' on process 1; config.recipe.lr is " in said
    assert said.count("\n") == 0
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------------- harvest and eval
SITE = "blocks.1.hook_resid_post"
SETTINGS = {
    "sites": (SITE,),
    "context_size": 16,
    "batch_size": 4,
    "shuffle_tokens": 256,
    "documents": "line",
    "heldout_fraction": 0.2,
    "dtype": "float32",
}
MEASURE = EvalConfig(batch_rows=128, ce_tokens=256, ce_batch_windows=4, bootstrap=10)
CHILD = """
    import jax, json, os, sys
    from jaxsae import parallel
    from jaxsae.cli import harvest as command
    from jaxsae.data import HarvestConfig, harvest, open_cache
    from jaxsae.evals.evaluate import EvalConfig, evaluate
    from jaxsae.hosts import HostMesh
    from jaxsae.io import load
    from jaxsae.testing.tiny_host import tiny_host

    settings, cache, sae, out, dies = json.loads(sys.argv[1]), *sys.argv[2:]
    place = parallel.start()
    host = tiny_host()

    def with_end(config, *args, say, **options):
        def tell(tokens, rows):
            say(tokens, rows)
            if rows:  # a block is written
                os._exit(9)
        return harvest(config, *args, say=tell, **options)

    if place.index == int(dies):
        command.harvest = with_end
    cut = HostMesh(latent=2) if parallel.count() < len(jax.devices()) else HostMesh()
    config = HarvestConfig(**{**settings, "sites": tuple(settings["sites"]), "mesh": cut})
    command.run(config, cache, host=host)
    measure = EvalConfig(batch_rows=128, ce_tokens=256, ce_batch_windows=4, bootstrap=10)
    numbers = evaluate(load(sae), open_cache(cache), host, config=measure)
    with open(f"{out}/{place.index}.json", "w") as f:
        json.dump(numbers, f)
"""


def test_harvest_into_disjoint_parts_killed_and_continued_and_evaluated_together(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(sentences(60)))
    settings = {**SETTINGS, "corpus": str(text)}
    w = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32) / 6
    sae = make_sae({"W_enc": w.T, "b_enc": np.zeros(64, np.float32), "W_dec": w, "b_dec": np.zeros(32, np.float32)})
    from jaxsae import save

    save(sae, tmp_path / "sae")
    several, single = tmp_path / "several", tmp_path / "single"
    call = ["-c", textwrap.dedent(CHILD), json.dumps(settings), str(several), str(tmp_path / "sae"), str(tmp_path)]
    with Group(tmp_path / "dies", 2, [*call, "1"]) as two:
        statuses = two.statuses(within=60)
        assert statuses[1] == 9
        assert statuses[0] != 0, two.everything()
    assert not open_cache(several).done
    with Group(tmp_path / "lives", 2, [*call, "-1"], devices=2) as two:  # each cuts its host over devices of its own
        assert two.statuses() == [0, 0], two.everything()
        assert two.said(1) + two.said(1, "out") == ""
        assert "host on mesh data 1 x latent 2" in two.said(0)
    harvest_command.run(HarvestConfig(**settings), single, host=tiny_host())
    found, expected = open_cache(several), open_cache(single)
    assert found.done
    assert [p.rows["train"] > 0 for p in found.progress] == [True, True]
    owners = [set(split_documents(found, part)) for part in (0, 1)]
    assert owners[0].isdisjoint(owners[1])
    assert owners[0] | owners[1] == set(expected.documents)
    assert dict(found.documents).keys() == dict(expected.documents).keys()
    numbers = [json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1)]
    alone = evaluate(sae, found, tiny_host(), config=MEASURE)
    for name in ("rows", "fvu", "l0", "clean_ce", "sae_ce", "loss_recovered_mean", "ce_tokens"):
        assert numbers[0][name] == numbers[1][name] == pytest.approx(alone[name], rel=1e-5), name


def split_documents(cache, part: int) -> list[int]:
    """Documents of one part."""
    found = []
    for split in ("train", "heldout"):
        rows = [p.rows[split] for p in cache.progress]
        start = sum(rows[:part])
        found += cache.split(split).origin(np.arange(start, start + rows[part])).doc.tolist()
    return found


# -------------------------------------------------------------------------------------------------------------- start
def slurm(i: int, port: int) -> dict[str, str]:
    job = {"SLURM_JOB_ID": "4711", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    return {**job, "SLURM_PROCID": str(i), "SLURM_LOCALID": "0", "JAX_COORDINATOR_PORT": str(port)}


def gke(i: int, port: int) -> dict[str, str]:
    return {
        "TPU_WORKER_HOSTNAMES": "localhost,localhost",
        "TPU_WORKER_ID": str(i),
        "JAX_FORCE_TPU_INIT": "1",  # there are no chips here
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
        "JAX_COORDINATOR_PORT": str(port),
    }


@pytest.mark.parametrize("cluster", [slurm, gke])
def test_a_cluster_is_recognised(tmp_path, cluster):
    if cluster is gke:
        pytest.importorskip("libtpu", reason="jax looks for a TPU slice only where libtpu is installed")
    code = """
        from jaxsae import parallel
        place = parallel.start()
        print(place.told_by, parallel.exchange("n", str(place.index)), len(parallel.gather(place.index)))
    """
    with Group(tmp_path, 2, ["-c", textwrap.dedent(code)], each=cluster) as two:
        assert two.statuses() == [0, 0], two.everything()
        name = {slurm: "Slurm", gke: "a TPU slice of GKE"}[cluster]
        assert [two.said(i, "out") for i in (0, 1)] == [f"{name} ['0', '1'] 2"] * 2


def test_a_process_that_nobody_joins_ends_with_a_sentence(tmp_path):
    only = {0: {"JAXSAE_PROCESS_COUNT": "2", "JAXSAE_START_SECONDS": "2"}}
    with Group(tmp_path, 1, ["-m", "jaxsae", "doctor"], only=only) as one:
        assert one.statuses() == [75]
        assert one.said(0).startswith("jaxsae: error: the 2 processes did not all come together within 2 s")


def test_an_error_of_one_process_is_told_by_all(tmp_path):
    code = """
        import sys, time
        from jaxsae import parallel
        from jaxsae.parallel.lost import end
        if parallel.start().index == 1:
            sys.exit(end(1, "jaxsae: error: a file is damaged"))
        time.sleep(60)
    """
    with Group(tmp_path, 3, ["-c", textwrap.dedent(code)]) as three:
        assert three.statuses(within=40) == [75, 1, 75], three.everything()
        assert three.said(1) == "jaxsae: error: a file is damaged (process 1 of 3)"
        for i in (0, 2):
            assert three.said(i).startswith("jaxsae: error: process 1 of 3 ended: a file is damaged; the same command")


def test_a_killed_process_is_noticed_where_no_collective_waits_for_it(tmp_path):
    """As on TPUs, and in a save: the others wait for its word, and missed heartbeats would take much longer."""
    code = """
        import os, time
        from jaxsae import parallel
        parallel.lifeline.GRACE = 1
        place = parallel.start()
        if place.index == 1 and os.fork():  # its child lives on, as a loader of data may
            print("there", flush=True)
            time.sleep(200)
        elif place.index == 1:
            time.sleep(30)
            os._exit(0)
        print("there", flush=True)
        parallel.exchange("word", "mine")
    """
    slow = {i: {"JAXSAE_HEARTBEAT_SECONDS": "100"} for i in range(3)}
    with Group(tmp_path, 3, ["-c", textwrap.dedent(code)], only=slow) as three:
        three.until(lambda: all("there" in three.said(i, "out") for i in range(3)))
        time.sleep(2)
        three.processes[1].kill()
        assert three.statuses(within=20) == [75, -signal.SIGKILL, 75], three.everything()
        told = "jaxsae: error: process 1 of 3 ended or cannot be reached; the same command"
        assert all(three.said(i).startswith(told) for i in (0, 2)), three.everything()


@pytest.mark.parametrize("forked", [False, True])
def test_processes_may_end_in_peace_at_different_times(tmp_path, forked):
    code = """
        import multiprocessing, sys, time
        def work():
            from jaxsae import parallel
            parallel.lifeline.GRACE = 1
            if parallel.start().index == 0:
                time.sleep(4)
            print("done", flush=True)
        if sys.argv[1] == "True":
            process = multiprocessing.get_context("fork").Process(target=work)
            process.start()
            process.join()
            sys.exit(process.exitcode)
        work()
    """
    with Group(tmp_path, 2, ["-c", textwrap.dedent(code), str(forked)]) as two:
        assert two.statuses(within=60) == [0, 0], two.everything()
        assert [two.said(i, "out") for i in (0, 1)] == ["done", "done"]


def test_a_process_that_hangs_is_given_up_after_the_heartbeat_time(tmp_path):
    """A stopped process closes no connection, like a machine that is gone; jax itself aborts and names it."""
    code = "import time; from jaxsae import parallel; parallel.start(); print('there', flush=True); time.sleep(100)"
    quick = {i: {"JAXSAE_HEARTBEAT_SECONDS": "4"} for i in (0, 1)}
    with Group(tmp_path, 2, ["-c", code], only=quick) as two:
        two.until(lambda: all("there" in two.said(i, "out") for i in (0, 1)))
        two.processes[1].send_signal(signal.SIGSTOP)
        assert two.processes[0].wait(30) == ABORTED
        assert "stopped sending heartbeats" in two.said(0)
