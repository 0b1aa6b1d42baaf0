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
        (("submit", "--venv=nowhere", "--", "jaxsae"), "there is no Python environment in nowhere"),
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
