"""launch/tpu.sh against a pretended Cloud TPU: what it asks for, in which order, and what it leaves."""

import re
import shlex
import signal
import time

import pytest

BASE = ("--project=p", "--zone=us-west4-a", "--name=sae-1", "--poll=0.05")
SLICE = (*BASE, "--accelerator-type=v5litepod-16", "--package=jaxsae[tpu]")
TRAIN = ("--", "jaxsae", "train", "--output", "gs://bucket/run")
SETUP = ["tpu-vm scp", "ssh setup", "ssh start", "ssh follow", "ssh result"]
READY = ["queued-resources describe", "tpu-vm describe"]
CREATED = ["queued-resources describe", "queued-resources create", *READY]
DELETE = "gcloud compute tpus queued-resources delete sae-1 --force --project=p --zone=us-west4-a --quiet"


def the_error(done) -> str:
    """The one sentence a failing script ends with."""
    errors = [line for line in done.stderr.splitlines() if " error: " in line]
    assert len(errors) == 1, done.stderr
    return errors[0]


def the_error_of(script: str, done) -> str:
    """The launcher's own one, where the workers have said something too."""
    (error,) = [line for line in done.stderr.splitlines() if line.startswith(f"{script}: error: ")]
    return error


def test_a_run_waits_sets_up_starts_on_every_worker_and_says_what_is_left(cloud):
    cloud.plan({"states": ["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]})
    done = cloud.run("tpu.sh", "run", *SLICE, "--spot", *TRAIN)
    assert done.returncode == 0, done.stderr
    create, *rest = cloud.verbs()[1:]
    assert create == "queued-resources create"
    assert rest == ["queued-resources describe"] * 3 + READY + SETUP
    made = next(call for call in cloud.calls() if "create" in call)
    assert {"--node-id=sae-1", "--accelerator-type=v5litepod-16", "--spot"} <= set(made)
    assert "--runtime-version=v2-alpha-tpuv5-lite" in made
    for worker in ("w0", "w1"):
        assert cloud.args(worker) == ["train", "--output", "gs://bucket/run"]
        assert (cloud.folder / f"cwd-{worker}").read_text() == f"{cloud.folder / worker}/jaxsae-launch/files\n"
        assert not re.search("TPU_|JAX_PLATFORMS", (cloud.folder / f"env-{worker}").read_text())
    assert "step 1 on w0" in done.stdout
    assert "step 1 on w1" not in done.stdout
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
        assert done.stderr.count(f"sae-1: {state} ") == 1
    assert done.stderr.rstrip().endswith(DELETE)
    assert "16 chip-hours" in done.stderr


def test_a_dry_run_prints_the_calls_that_a_run_makes(cloud):
    args = ("run", *SLICE, "--delete-at-end", "--", "jaxsae", "train", "--config", "a 'b'.yaml", "--output", "gs://b/r")
    dry = cloud.run("tpu.sh", "run", "--dry-run", *args[1:])
    assert dry.returncode == 0
    assert not cloud.calls()
    assert cloud.run("tpu.sh", *args).returncode == 0

    def plain(words):
        return [re.sub(r".*/jaxsae-launch$", "STAGE", word) for word in words]

    assert [plain(shlex.split(line)) for line in dry.stdout.splitlines()] == [plain(c) for c in cloud.calls()]


def test_after_a_preemption_it_asks_again_and_runs_the_same_command(cloud):
    preempted = {"states": ["ACTIVE"], "preempt": True}
    cloud.plan(preempted, {"states": ["PROVISIONING", "ACTIVE"]}, program={"w0": ["wait"], "w1": ["wait"]})
    done = cloud.run("tpu.sh", "run", *SLICE, "--spot", *TRAIN)
    assert done.returncode == 0, done.stderr
    verbs = cloud.verbs()
    assert verbs.count("queued-resources create") == 2
    assert verbs.count("queued-resources delete") == 1
    first, second = [call for call in cloud.calls() if "create" in call]
    assert first == second
    assert verbs[-len(SETUP) :] == SETUP
    for worker in ("w0", "w1"):
        assert cloud.args(worker, 1) == cloud.args(worker, 2)
        assert cloud.starts(worker) == 2
    assert "taken away; starting the same command again (restart 1 of at most 50)" in done.stderr


def test_a_request_that_was_preempted_before_is_replaced(cloud):
    cloud.plan({"states": ["SUSPENDED"]}, {"states": ["ACTIVE"]})
    cloud.run("tpu.sh", "create", *SLICE)
    assert [v for v in cloud.verbs() if "describe" not in v] == [
        "queued-resources create",
        "queued-resources delete",
        "queued-resources create",
    ]


def test_a_failed_request_ends_with_its_reason_and_the_way_to_delete_it(cloud):
    cloud.plan({"states": ["WAITING_FOR_RESOURCES", "FAILED"]})
    done = cloud.run("tpu.sh", "run", *SLICE, *TRAIN)
    assert done.returncode == 1
    assert the_error(done).endswith("the request for sae-1 failed: no capacity before the end of the interval")
    assert done.stderr.rstrip().endswith(DELETE)
    assert cloud.starts("w0") == 0


def test_a_refused_request_leaves_nothing(cloud):
    cloud.plan(errors={"compute tpus queued-resources create": "RESOURCE_EXHAUSTED: Quota limit has been exceeded."})
    done = cloud.run("tpu.sh", "run", *SLICE, *TRAIN)
    assert done.returncode == 1
    assert "Quota limit" in done.stderr
    assert "did not make sae-1" in the_error(done)
    assert "is left" not in done.stderr
    assert DELETE not in done.stderr


def test_delete_at_end_deletes_after_success_and_after_failure(cloud):
    cloud.plan(program={"w0": ["0", "1"]})
    for status in (0, 1):
        done = cloud.run("tpu.sh", "run", *SLICE, "--delete-at-end", *TRAIN)
        assert done.returncode == status
        assert cloud.verbs()[-1] == "queued-resources delete"
        assert "is left" not in done.stderr


def deleted(cloud) -> bool:
    return "queued-resources delete" in cloud.verbs()


@pytest.mark.parametrize("also", [{}, {"compute tpus queued-resources describe": "Connection reset by peer"}])
def test_delete_at_end_keeps_a_slice_on_which_the_command_may_still_run(cloud, also):
    lost = {"workers": 1, "drop": 10**6}
    cloud.plan(**lost, program={"w0": ["wait"]})
    launcher = cloud.start("tpu.sh", "run", *SLICE, "--delete-at-end", *TRAIN)
    cloud.wait_for(lambda: cloud.starts("w0") and "ssh follow" in cloud.verbs())
    cloud.plan(**lost, errors={"compute tpus tpu-vm ssh": "[ssh] exited with return code [255].", **also})
    _, errors = launcher.communicate(timeout=30)
    assert launcher.returncode == 1, errors
    assert not deleted(cloud)
    assert "sae-1 is kept in spite of --delete-at-end" in errors
    assert errors.rstrip().endswith(DELETE)
    cloud.plan(workers=1)
    assert "worker w0: running" in cloud.run("tpu.sh", "status", *BASE).stdout


def test_delete_at_end_of_a_call_that_is_refused_keeps_what_another_call_runs(cloud):
    cloud.plan(workers=1, program={"w0": ["wait"]})
    assert cloud.run("tpu.sh", "run", *SLICE, "--detach", *TRAIN).returncode == 0
    other = cloud.run("tpu.sh", "run", *SLICE, "--delete-at-end", "--", "jaxsae", "eval", "gs://b")
    assert other.returncode == 1
    assert not deleted(cloud)
    assert "worker w0: running" in cloud.run("tpu.sh", "status", *BASE).stdout


def test_delete_at_end_deletes_a_slice_on_which_nothing_could_be_started(cloud):
    cloud.plan(errors={"pip install": "No solution found"})
    assert cloud.run("tpu.sh", "run", *SLICE, *TRAIN).returncode == 1
    for _ in ("a slice that another call left", "one of its own"):
        assert cloud.run("tpu.sh", "run", *SLICE, "--delete-at-end", *TRAIN).returncode == 1
        assert cloud.verbs()[-1] == "queued-resources delete"


def test_delete_at_end_after_a_stop_or_while_the_request_waits(cloud):
    cloud.plan(workers=1, program={"w0": ["wait"]})
    launcher = cloud.start("tpu.sh", "run", *SLICE, "--delete-at-end", *TRAIN)
    cloud.wait_for(lambda: cloud.starts("w0") and cloud.shows_log())
    assert cloud.run("tpu.sh", "stop", *BASE).returncode == 0
    launcher.communicate(timeout=30)
    assert launcher.returncode == 143
    assert cloud.verbs()[-1] == "queued-resources delete"
    cloud.plan({"states": ["WAITING_FOR_RESOURCES"]})
    launcher = cloud.start("tpu.sh", "run", *SLICE, "--poll=30", "--delete-at-end", *TRAIN)
    cloud.wait_for(lambda: cloud.verbs()[-2:] == ["queued-resources create", "queued-resources describe"])
    time.sleep(0.3)
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=60)
    assert cloud.verbs()[-1] == "queued-resources delete"


def test_a_second_signal_lets_the_program_run_on_and_so_keeps_its_slice(cloud):
    cloud.plan(workers=1)
    deaf = ("--", "bash", "-c", "trap : TERM; echo gs://; while :; do sleep 0.1; done")
    launcher = cloud.start("tpu.sh", "run", *SLICE, "--delete-at-end", *deaf)
    cloud.wait_for(cloud.shows_log)
    launcher.send_signal(signal.SIGINT)
    cloud.wait_for(lambda: cloud.verbs()[-1] == "ssh stop")
    time.sleep(0.5)
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=20)
    assert launcher.returncode == 130
    assert not deleted(cloud)
    assert errors.rstrip().endswith(DELETE)
    assert "worker w0: running" in cloud.run("tpu.sh", "status", *BASE).stdout


def test_the_worker_that_fails_first_is_the_cause_and_a_named_error_is_final(cloud):
    cloud.plan(program={"w0": ["late-134"], "w1": ["1"]})
    done = cloud.run("tpu.sh", "run", *SLICE, *TRAIN)
    assert done.returncode == 1
    assert "status 1 on worker w1" in the_error(done)
    assert "worker w1 | step 1 on w1" in done.stderr
    assert cloud.starts("w0") == cloud.starts("w1") == 1


@pytest.mark.parametrize("crash", ["134", "vanish"])
def test_after_a_crash_it_starts_again_on_the_same_machines(cloud, crash):
    cloud.plan(program={"w1": [crash, "0"]})
    done = cloud.run("tpu.sh", "run", *SLICE, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert cloud.verbs().count("queued-resources create") == 1
    assert cloud.starts("w0") == cloud.starts("w1") == 2


def test_a_crash_that_comes_again_at_once_is_not_paid_for_fifty_times(cloud):
    cloud.plan(workers=1, program={"w0": ["134"] * 9})
    done = cloud.run("tpu.sh", "run", *SLICE, *TRAIN)
    assert done.returncode == 134
    assert cloud.starts("w0") == 3
    assert "three times within 60 s" in the_error(done)


def test_a_broken_connection_does_not_restart_the_program(cloud):
    cloud.plan(workers=1, drop=2, program={"w0": ["late-0"]})
    done = cloud.run("tpu.sh", "run", *SLICE, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert cloud.starts("w0") == 1


def test_the_same_call_goes_on_with_a_command_that_still_runs(cloud):
    cloud.plan(workers=1, program={"w0": ["wait"]})
    assert cloud.run("tpu.sh", "run", *SLICE, "--detach", *TRAIN).returncode == 0
    again = cloud.start("tpu.sh", "run", *SLICE, *TRAIN)
    cloud.wait_for(cloud.shows_log)
    other = cloud.run("tpu.sh", "run", *SLICE, "--", "jaxsae", "eval", "gs://b")
    assert other.returncode == 1
    assert "another command is running here: 'jaxsae' 'train'" in other.stderr
    stopped = cloud.run("tpu.sh", "stop", *BASE)
    assert stopped.returncode == 0
    assert "worker w0: ended 143" in stopped.stdout
    assert DELETE in stopped.stderr
    _, errors = again.communicate(timeout=30)
    assert again.returncode == 143, errors
    assert "stopped with the verb stop" in errors
    assert cloud.starts("w0") == 1


def test_stop_reaches_every_worker_and_ends_the_run_that_follows_them(cloud):
    cloud.plan(program={"w0": ["wait", "0"], "w1": ["wait", "0"]})
    launcher = cloud.start("tpu.sh", "run", *SLICE, *TRAIN)
    cloud.wait_for(lambda: cloud.starts("w0") and cloud.starts("w1") and cloud.shows_log())
    stopped = cloud.run("tpu.sh", "stop", *BASE)
    assert re.fullmatch(r"(worker w[01]: ended 143 at [\d.]+, asked to stop\n){2}", stopped.stdout)
    _, errors = launcher.communicate(timeout=30)
    assert launcher.returncode == 143, errors
    assert "starting the same command again" not in errors
    for worker in ("w0", "w1"):
        assert (cloud.folder / f"saved-{worker}").read_text() == "saved\n"
        assert cloud.starts(worker) == 1
    assert cloud.run("tpu.sh", "run", *SLICE, *TRAIN).returncode == 0  # the mark holds for no later call
    assert cloud.starts("w0") == cloud.starts("w1") == 2


def test_a_stop_that_reached_one_worker_between_a_crash_and_the_restart_ends_all(cloud):
    cloud.plan(program={"w0": ["134", "wait"], "w1": ["75", "wait"]})
    launcher = cloud.start("tpu.sh", "run", *SLICE, "--poll=2", *TRAIN)
    cloud.wait_for(lambda: cloud.verbs()[-1:] == ["ssh stop"])
    (cloud.folder / "w0/jaxsae-launch/stopped").touch()
    _, errors = launcher.communicate(timeout=30)
    assert launcher.returncode == 143, errors
    assert "asked to stop, so it is not started again" in errors
    assert (cloud.starts("w0"), cloud.starts("w1")) == (1, 2)
    assert (cloud.folder / "saved-w1").exists()


def test_the_words_of_the_command_reach_every_worker_unchanged(cloud):
    words = ["two  spaces", "it's", '"quoted"', "$HOME", "`date`", "*", "a\nb", "", "--flag=x y", "a\\b", "#", "&", "ü"]
    done = cloud.run("tpu.sh", "run", *SLICE, "--env", "MESSAGE=it's  $5", *TRAIN, *words)
    assert done.returncode == 0, done.stderr
    for worker in ("w0", "w1"):
        assert cloud.args(worker) == [*TRAIN[2:], *words]
        assert "MESSAGE=it's  $5\n" in (cloud.folder / f"env-{worker}").read_text()


def test_files_wheel_and_exact_versions_go_to_every_worker(cloud):
    (cloud.cwd / "train.yaml").write_text("cache: gs://bucket/acts\n")
    (cloud.cwd / "jaxsae-0.1.0-py3-none-any.whl").write_text("wheel")
    (cloud.cwd / "exact.txt").write_text("jax==0.10.2\n")
    files = ("--copy", "train.yaml", "--package", "jaxsae-0.1.0-py3-none-any.whl", "--constraints", "exact.txt")
    for _ in range(2):
        done = cloud.run("tpu.sh", "run", *SLICE, *files, "--", "jaxsae", "train", "--config", "train.yaml")
        assert done.returncode == 0, done.stderr
    installs = [call for call in cloud.calls("uv") if call[1] == "pip"]
    assert len(installs) == 2  # one for each worker, none for the second run
    for worker in ("w0", "w1"):
        files = cloud.folder / worker / "jaxsae-launch/files"
        assert (files / "train.yaml").read_text() == "cache: gs://bucket/acts\n"
        wheel = f"jaxsae[tpu] @ file://{files}/jaxsae-0.1.0-py3-none-any.whl"
        assert [call[-3:] for call in installs if call[-1] == wheel] == [["-c", f"{files}/exact.txt", wheel]]
    assert "environment kept: jaxsae 0.0" in done.stdout


def test_a_url_is_left_as_pip_takes_it(cloud):
    package = "jaxsae[tpu] @ https://host/jaxsae-0.1.0-py3-none-any.whl"
    done = cloud.run("tpu.sh", "run", *SLICE, f"--package={package}", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert {call[-1] for call in cloud.calls("uv") if call[1] == "pip"} == {package}


def test_a_call_with_another_command_or_package_leaves_a_command_that_runs_its_files_and_environment(cloud):
    config = cloud.cwd / "train.yaml"
    config.write_text("cache: gs://bucket/first\n")
    (cloud.cwd / "jaxsae-0.1.0-py3-none-any.whl").write_text("wheel")
    (cloud.cwd / "jaxsae-0.2.0-py3-none-any.whl").write_text("another wheel")
    cloud.plan(program={"w0": ["wait"], "w1": ["wait"]})
    call = ("run", *SLICE, "--detach", "--copy=train.yaml")
    train = ("--", "jaxsae", "train", "--config", "train.yaml")
    first = ("--package=jaxsae-0.1.0-py3-none-any.whl", *train)
    assert cloud.run("tpu.sh", *call, *first).returncode == 0
    installed = len(cloud.calls("uv"))
    config.write_text("cache: gs://bucket/second\n")
    other = cloud.run("tpu.sh", *call, "--package=jaxsae-0.2.0-py3-none-any.whl", "--", "jaxsae", "eval", "gs://b")
    assert other.returncode == 1
    assert "another command is running here: 'jaxsae' 'train'" in other.stderr
    assert "nothing was changed on them" in the_error_of("tpu.sh", other)
    for worker in ("w0", "w1"):
        files = cloud.folder / worker / "jaxsae-launch/files"
        assert (files / "train.yaml").read_text() == "cache: gs://bucket/first\n"
        assert not (files / "jaxsae-0.2.0-py3-none-any.whl").exists()
    other = cloud.run("tpu.sh", *call, "--package=jaxsae-0.2.0-py3-none-any.whl", *train)
    assert other.returncode == 1
    assert "so its environment is not replaced by one with Python 3.12 and 'jaxsae[tpu] @ " in other.stderr
    assert len(cloud.calls("uv")) == installed
    assert (cloud.folder / "w0/jaxsae-launch/env/bin/jaxsae").exists()
    again = cloud.run("tpu.sh", *call, *first)
    assert again.returncode == 0, again.stderr
    assert "already running" in again.stdout
    assert cloud.starts("w0") == cloud.starts("w1") == 1


def test_an_environment_that_cannot_be_made_ends_the_run_before_the_command(cloud):
    cloud.plan(errors={"pip install": "No solution found"})
    done = cloud.run("tpu.sh", "run", *SLICE, *TRAIN)
    assert done.returncode == 1
    assert "No solution found" in done.stderr
    assert DELETE in done.stderr
    assert cloud.starts("w0") == 0


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_program_save_on_every_worker(cloud, sent, status):
    cloud.plan(program={"w0": ["wait"], "w1": ["wait"]})
    launcher = cloud.start("tpu.sh", "run", *SLICE, "--delete-at-end", *TRAIN)
    cloud.wait_for(lambda: cloud.starts("w1") and cloud.shows_log())
    launcher.send_signal(sent)
    _, errors = launcher.communicate(timeout=30)
    assert launcher.returncode == status, errors
    for worker in ("w0", "w1"):
        assert (cloud.folder / f"saved-{worker}").read_text() == "saved\n"
    assert cloud.verbs()[-2:] == ["ssh stop", "queued-resources delete"]


def test_a_lost_terminal_leaves_the_program_running(cloud):
    cloud.plan(workers=1, program={"w0": ["wait"]})
    launcher = cloud.start("tpu.sh", "run", *SLICE, *TRAIN)
    cloud.wait_for(lambda: cloud.starts("w0") and cloud.shows_log())
    launcher.send_signal(signal.SIGHUP)
    launcher.communicate(timeout=60)
    assert launcher.returncode == 129
    assert "worker w0: running" in cloud.run("tpu.sh", "status", *BASE).stdout


def test_a_signal_while_it_waits_ends_at_once_and_names_the_request(cloud):
    cloud.plan({"states": ["WAITING_FOR_RESOURCES"]})
    launcher = cloud.start("tpu.sh", "run", *SLICE, "--poll=30", *TRAIN)
    cloud.wait_for(lambda: cloud.verbs().count("queued-resources describe") == 2)
    time.sleep(0.3)
    launcher.send_signal(signal.SIGTERM)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 143
    assert errors.rstrip().endswith(DELETE)


def test_made_now_and_preempted(cloud):
    cloud.plan({"states": ["READY"], "preempt": True}, {"states": ["CREATING", "READY"]}, workers=1)
    done = cloud.run("tpu.sh", "run", *SLICE, "--now", "--spot", *TRAIN)
    assert done.returncode == 0, done.stderr
    made = [call for call in cloud.calls() if "create" in call]
    assert len(made) == 2
    assert "--version=v2-alpha-tpuv5-lite" in made[0]
    assert not any("queued-resources" in call for call in cloud.calls())
    assert done.stderr.rstrip().endswith("tpu-vm delete sae-1 --project=p --zone=us-west4-a --quiet")


def test_delete_status_and_logs(cloud):
    missing = cloud.run("tpu.sh", "delete", *BASE)
    assert missing.returncode == 1
    assert "there is no sae-1 in project p" in the_error(missing)
    assert cloud.run("tpu.sh", "status", *BASE).stderr == "sae-1: ABSENT\n"
    cloud.run("tpu.sh", "run", *SLICE, *TRAIN)
    status = cloud.run("tpu.sh", "status", *BASE)
    assert status.stderr == "sae-1: ACTIVE\n"
    assert re.fullmatch(r"(worker w[01]: ended 0 at [\d.]+\n){2}", status.stdout)
    logs = cloud.run("tpu.sh", "logs", *BASE, "--worker=1")
    assert "step 1 on w1" in logs.stdout
    assert cloud.run("tpu.sh", "delete", *BASE).returncode == 0
    assert cloud.verbs()[-1] == "queued-resources delete"


def test_a_state_that_cannot_be_had_is_asked_again_unless_it_is_forbidden(cloud):
    describe = "compute tpus queued-resources describe"
    cloud.plan(errors={describe: "The service is currently unavailable."})
    done = cloud.run("tpu.sh", "run", *SLICE, *TRAIN)
    assert done.returncode == 1
    assert len(cloud.calls()) == 1 + 5
    assert the_error(done).endswith("The service is currently unavailable.")
    cloud.plan(errors={describe: "PERMISSION_DENIED: tpu.nodes.get"})
    done = cloud.run("tpu.sh", "run", *SLICE, *TRAIN)
    assert "PERMISSION_DENIED" in the_error(done)
    assert len(cloud.calls()) == 6 + 2


def without(option: str) -> tuple[str, ...]:
    return tuple(a for a in SLICE if not a.startswith(f"--{option}="))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ((), "the first word must be one of run, create"),
        (("rnu",), "unknown verb 'rnu'; possible: run"),
        (("run", *without("project"), *TRAIN), "no project given; add --project or set JAXSAE_PROJECT"),
        (("run", *without("zone"), *TRAIN), "no zone given"),
        (("run", *without("name"), *TRAIN), "no name given"),
        (("run", *without("accelerator-type"), *TRAIN), "no accelerator-type given"),
        (("run", *without("package"), *TRAIN), "no package given; jaxsae is on no package index yet, so build a wheel"),
        (("run", *BASE, "--accelerator-type=v5litepod-17", *TRAIN), "unknown accelerator type 'v5litepod-17';"),
        (("run", *BASE, "--accelerator-type=a100", *TRAIN), "unknown accelerator type 'a100'"),
        (("run", *SLICE, "--zone=west", *TRAIN), "option '--zone' must be a zone such as us-west4-a"),
        (("run", *SLICE, "--name=Sae_1", *TRAIN), "option '--name' must be lower-case"),
        (("run", *SLICE, "--acelerator=x", *TRAIN), "unknown option '--acelerator'; possible: --project"),
        (("run", *SLICE, "--spot=yes", *TRAIN), "option '--spot' takes no value"),
        (("run", *SLICE, "--python"), "option '--python' needs a value"),
        (("run", *SLICE, "--python", "3", *TRAIN), "option '--python' must be a version such as 3.12"),
        (("run", *SLICE, "--max-restarts=many", *TRAIN), "must be a whole number, found 'many'"),
        (("run", *SLICE, "--poll=banana", *TRAIN), "option '--poll' must be a number of seconds, found 'banana'"),
        (("run", *SLICE, "jaxsae", "train"), "unexpected argument 'jaxsae'; the command to run comes after --"),
        (("run", *SLICE), "no command to run; write it after --"),
        (("run", *SLICE, "--", "jaxsae", "train"), "results would be lost with the TPU VM"),
        (("run", *SLICE, "--output=gs://b", "--", "jaxsae", "train"), "write {output} there"),
        (("run", *SLICE, "--", "jaxsae", "train", "{output}"), "but no --output is given"),
        (("run", *SLICE, "--copy=nothing.yaml", *TRAIN), "there is no file nothing.yaml"),
        (("run", *SLICE, "--package=x-1.whl", *TRAIN), "there is no file x-1.whl"),
        (("run", *SLICE, "--env=TPU_SKIP_MDS_QUERY=1", *TRAIN), "would keep the workers from finding each other"),
        (("run", *SLICE, "--env=novalue", *TRAIN), "must be NAME=VALUE"),
        (("run", *SLICE, "--detach", "--delete-at-end", *TRAIN), "would delete it while it runs"),
        (("run", *SLICE, "--now", "--valid-until-duration=6h", *TRAIN), "--now asks for no queue"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_touches_nothing(cloud, args, sentence):
    done = cloud.run("tpu.sh", *args)
    assert done.returncode == 2
    assert not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert sentence in done.stderr
    assert not cloud.calls()


def test_settings_may_come_from_the_environment(cloud):
    env = {"JAXSAE_NAME": "other", "JAXSAE_SPOT": "1"}
    google = {"CLOUDSDK_CORE_PROJECT": "q", "CLOUDSDK_COMPUTE_ZONE": "us-east1-d"}
    done = cloud.run("tpu.sh", "create", "--accelerator-type=v6e-8", "--name=mine", **env, **google)
    assert done.returncode == 0, done.stderr
    made = next(call for call in cloud.calls() if "create" in call)
    assert {"mine", "--project=q", "--zone=us-east1-d", "--spot", "--runtime-version=v2-alpha-tpuv6e"} <= set(made)


def test_without_credentials_or_gcloud_nothing_is_asked_for(cloud):
    cloud.plan(account="")
    done = cloud.run("tpu.sh", "run", *SLICE, *TRAIN)
    assert done.returncode == 1
    assert "run `gcloud auth login`" in the_error(done)
    assert cloud.verbs() == []
    (cloud.bin / "gcloud").unlink()
    done = cloud.run("tpu.sh", "run", *SLICE, *TRAIN)
    assert done.returncode == 1
    assert "'gcloud' is not on the PATH" in the_error(done)


def test_the_pretended_gcloud_refuses_what_the_real_one_does_not_have(cloud):
    done = cloud.run("tpu.sh", "create", *SLICE, "--create-flag=--best-effort")
    assert done.returncode == 1
    assert "unrecognized arguments: --best-effort" in done.stderr
    assert "is left" not in done.stderr
    cloud.run("tpu.sh", "create", *SLICE, "--create-flag=--network=mine")
    done = cloud.run("tpu.sh", "run", *SLICE, "--ssh-flag=--batch-size=4", *TRAIN)  # only gcloud alpha has it here
    assert done.returncode == 1
    assert "unrecognized arguments: --batch-size=4" in done.stderr
    assert DELETE in done.stderr
