"""launch/slurm.sh and the batch script it submits, against pretended Slurm tools."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"


def test_the_job_gets_one_process_for_each_gpu_and_the_words_unchanged(cloud):
    words = ["jaxsae", "train", "two  spaces", "it's", "$HOME", ""]
    options = ("--nodes=2", "--gpus-per-node=8", "--time=08:00:00", "--partition=p", "--sbatch-flag=--qos=long")
    done = cloud.run("slurm.sh", "submit", *options, "--", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4711\n"
    assert "log: jaxsae-4711.log" in done.stderr
    assert "stop --job 4711" in done.stderr
    (call,) = cloud.calls("sbatch")
    script = call.index(str(LAUNCH / "slurm.sbatch"))
    assert call[script + 1 :] == ["-", *words]
    assert {"--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--requeue", "--qos=long"} <= set(call[:script])
    assert {"--open-mode=append", "--signal=B:USR1@180"} <= set(call[:script])


def test_a_dry_run_prints_the_call(cloud):
    args = ("--venv=v", "--package=jaxsae[cuda]", "--", "jaxsae", "a b")
    dry = cloud.run("slurm.sh", "submit", "--dry-run", *args)
    assert not cloud.calls("sbatch")
    assert not cloud.calls("uv")
    assert cloud.run("slurm.sh", "submit", *args).returncode == 0
    setup, submit = [shlex.split(line) for line in dry.stdout.splitlines()]
    assert submit == cloud.calls("sbatch")[0]
    assert "v/env" in submit
    assert setup[-3:] == ["setup", "3.12", "jaxsae[cuda]"]
    assert cloud.calls("uv")[-1][-1] == "jaxsae[cuda]"


@pytest.mark.parametrize(
    "package", ["jaxsae-0.1.0-py3-none-any.whl[cuda]", "jaxsae[cuda] @ https://h/jaxsae-0.1.0.whl"]
)
def test_the_environment_has_the_wheel_or_what_lies_behind_the_url(cloud, package):
    (cloud.cwd / "jaxsae-0.1.0-py3-none-any.whl").write_text("wheel")
    done = cloud.run("slurm.sh", "submit", "--venv=v", f"--package={package}", "--", "jaxsae")
    assert done.returncode == 0, done.stderr
    file = f"jaxsae[cuda] @ file://{cloud.cwd}/jaxsae-0.1.0-py3-none-any.whl"
    assert cloud.calls("uv")[-1][-1] == (package if "@" in package else file)


def batch(cloud, *words: str, **env: str) -> subprocess.Popen:
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "-", *words]
    return subprocess.Popen(command, env={**cloud.env, "SLURM_JOB_ID": "4711", **env}, cwd=cloud.cwd)


def test_the_batch_script_ends_with_the_programs_status(cloud):
    program = ["bash", "-c", 'printf "%s|" "$SRUN_CPUS_PER_TASK" "$@" >"$FAKE_CLOUD/seen"; exit 3', "x", "a  b", "$c"]
    assert batch(cloud, *program, SLURM_CPUS_PER_TASK="4").wait(timeout=20) == 3
    assert (cloud.folder / "seen").read_text() == "4|a  b|$c|"
    assert cloud.calls("scontrol") == []


@pytest.mark.parametrize(("status", "again"), [(143, True), (0, False), (1, False)])
def test_before_the_time_limit_the_program_saves_and_the_job_is_queued_again(cloud, status, again):
    wait = f'trap "exit {status}" TERM; echo $$ >"$FAKE_CLOUD/program"; while :; do sleep 0.05; done'
    job = batch(cloud, "bash", "-c", wait)
    for _ in range(200):
        if (cloud.folder / "program").exists():
            break
        time.sleep(0.05)
    time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    for _ in range(200):
        if cloud.calls("scancel"):
            break
        time.sleep(0.05)
    assert cloud.calls("scancel") == [["scancel", "--signal=TERM", "4711"]]
    os.kill(int((cloud.folder / "program").read_text()), signal.SIGTERM)  # what scancel does to the processes
    assert job.wait(timeout=20) == (0 if again else status)
    assert cloud.calls("scontrol") == ([["scontrol", "requeue", "4711"]] if again else [])


def requeued(cloud) -> bool:
    calls = cloud.calls("scontrol")
    assert calls in ([], [["scontrol", "requeue", "4711"]])
    return bool(calls)


@pytest.mark.parametrize("end", ["exit 75", "exit 134", "kill -ABRT $$", "exit 137"])
def test_a_lost_or_killed_process_puts_the_job_back_into_the_queue(cloud, end):
    assert batch(cloud, "bash", "-c", end).wait(timeout=20) == 0
    assert requeued(cloud)


@pytest.mark.parametrize("status", [1, 2, 126, 127, 143])
def test_what_another_start_would_not_change_does_not(cloud, status):
    assert batch(cloud, "bash", "-c", f"exit {status}").wait(timeout=20) == status
    assert not requeued(cloud)


@pytest.mark.parametrize(
    ("own", "others", "status"), [(1, 75, 1), (75, 2, 2), (127, 134, 127), (75, 0, 0), (134, 75, 0)]
)
def test_the_error_of_one_process_counts_more_than_what_it_does_to_the_others(cloud, own, others, status):
    cloud.plan(tasks=3)
    program = f'if [ "$SLURM_PROCID" = 0 ]; then exit {own}; else exit {others}; fi'
    assert batch(cloud, "bash", "-c", program).wait(timeout=20) == status
    assert requeued(cloud) == (status == 0)


def test_the_turns_in_the_queue_have_an_end(cloud):
    crash = ("bash", "-c", "exit 75")
    assert batch(cloud, *crash, SLURM_RESTART_COUNT="50").wait(timeout=20) == 75
    assert batch(cloud, *crash, SLURM_RESTART_COUNT="2", JAXSAE_MAX_RESTARTS="2").wait(timeout=20) == 75
    assert not requeued(cloud)
    assert batch(cloud, *crash, SLURM_RESTART_COUNT="1", JAXSAE_MAX_RESTARTS="2").wait(timeout=20) == 0
    assert requeued(cloud)
    cloud.run("slurm.sh", "submit", "--max-restarts=2", "--", "jaxsae")
    assert "--export=ALL,JAXSAE_MAX_RESTARTS=2" in cloud.calls("sbatch")[0]


def test_a_job_that_slurm_does_not_queue_again_ends_with_its_status(cloud):
    cloud.plan(errors={"scontrol": "Requested operation is presently disabled for job 4711"})  # after slurm.sh stop
    assert batch(cloud, "bash", "-c", "exit 75").wait(timeout=20) == 75


def test_a_signal_to_every_process_of_a_step_leaves_the_program_time_to_save(cloud):
    save = "sleep 0.5; echo saved >$FAKE_CLOUD/saved; exit 143"
    wait = f"trap '{save}' TERM; echo $PPID $$ >$FAKE_CLOUD/pids; while :; do sleep 0.05; done"
    job = batch(cloud, "bash", "-c", wait)
    for _ in range(200):
        if (cloud.folder / "pids").exists() and (cloud.folder / "pids").read_text():
            break
        time.sleep(0.05)
    for pid in (cloud.folder / "pids").read_text().split():  # as Slurm does it: the shell around the program too
        os.kill(int(pid), signal.SIGTERM)
    assert job.wait(timeout=20) == 143
    assert (cloud.folder / "saved").exists()


def test_a_stopped_job_is_not_queued_again_whatever_it_ends_with(cloud):
    dry = cloud.run("slurm.sh", "stop", "--job=4711", "--dry-run")
    assert dry.stdout == "scontrol update JobId=4711 Requeue=0\nscancel --signal=TERM 4711\n"  # in this order
    assert cloud.run("slurm.sh", "stop", "--job=4711").returncode == 0
    assert cloud.calls("scontrol") == [["scontrol", "update", "JobId=4711", "Requeue=0"]]
    cloud.plan(errors={"scancel": "Invalid job id specified"})
    done = cloud.run("slurm.sh", "stop", "--job=4711")
    assert done.returncode == 1
    assert "a waiting one is removed with: scancel 4711" in done.stderr
    assert cloud.calls("scontrol")[-1] == ["scontrol", "update", "JobId=4711", "Requeue=1"]


@pytest.mark.parametrize(("verb", "tool"), [("status", "squeue"), ("stop", "scancel"), ("stop", "scontrol")])
def test_a_missing_tool_is_one_sentence(cloud, verb, tool):
    (cloud.bin / tool).unlink()
    done = cloud.run("slurm.sh", verb, "--job=4711")
    assert done.returncode == 1
    assert done.stderr == f"slurm.sh: error: '{tool}' is not on the PATH; run this on a login node of the cluster\n"
    assert cloud.calls("scancel") == cloud.calls("scontrol") == []


def test_stop_and_status(cloud):
    assert cloud.run("slurm.sh", "stop", "--job=4711").returncode == 0
    assert cloud.run("slurm.sh", "status", "--job=4711").returncode == 0
    assert cloud.calls("scancel") == [["scancel", "--signal=TERM", "4711"]]
    assert cloud.calls("squeue") == [["squeue", "--jobs=4711"]]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("submit",), "no command to run"),
        (("submit", "--nodes=two", "--", "jaxsae"), "option '--nodes' must be a whole number, found 'two'"),
        (("submit", "--nodes=08", "--", "jaxsae"), "option '--nodes' must be a whole number, found '08'"),
        (("submit", "--venv=nowhere", "--", "jaxsae"), "there is no Python environment in nowhere"),
        (("submit", "--max-restarts=many", "--", "jaxsae"), "option '--max-restarts' must be a whole number"),
        (("submit", "--package=jaxsae", "--", "jaxsae"), "--package needs --venv"),
        (("stop",), "no job given"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_submits_nothing(cloud, args, sentence):
    done = cloud.run("slurm.sh", *args)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not cloud.calls("sbatch")


def test_a_refused_job_and_a_missing_slurm_are_named(cloud):
    done = cloud.run("slurm.sh", "submit", "--sbatch-flag=--gpu-per-node=1", "--", "jaxsae")
    assert done.returncode == 1
    assert "unrecognized arguments" in done.stderr
    assert "did not take the job" in done.stderr
    (cloud.bin / "sbatch").unlink()
    done = cloud.run("slurm.sh", "submit", "--", "jaxsae")
    assert done.returncode == 1
    assert "'sbatch' is not on the PATH" in done.stderr
