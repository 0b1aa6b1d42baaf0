"""launch/local.sh: the same care on one machine."""

import signal
import time
from pathlib import Path

import pytest


@pytest.fixture
def program(cloud):
    """The pretended jaxsae, installed."""
    (cloud.bin / "jaxsae").symlink_to(Path(__file__).parent / "fake_jaxsae.sh")
    cloud.env["WORKER"] = "w0"
    return cloud


def test_a_run_shows_the_log_and_ends_with_the_programs_status(program):
    program.plan(program={"w0": ["0", "1"]})
    good = program.run("local.sh", "run", "--", "jaxsae", "train", "two  words")
    assert good.returncode == 0
    assert "step 1 on w0" in good.stdout
    assert program.args("w0") == ["train", "two  words"]
    assert (program.folder / "cwd-w0").read_text().strip() == str(program.cwd)
    bad = program.run("local.sh", "run", "--", "jaxsae", "train")
    assert bad.returncode == 1
    assert "status 1 on worker w0" in bad.stderr
    assert "ended 1 at" in program.run("local.sh", "status").stdout


def test_calls_in_the_same_moment_start_one_program(program):
    program.plan(program={"w0": ["wait", "wait", "wait"]})
    launchers = [program.start("local.sh", "run", "--poll=0.05", "--", "jaxsae", "train") for _ in range(3)]
    program.wait_for(lambda: program.followers() == 3)
    program.run("local.sh", "stop")
    assert [launcher.wait(30) for launcher in launchers] == [143] * 3
    assert program.starts("w0") == 1


def test_a_crash_is_followed_by_a_restart_and_a_dry_run_by_nothing(program):
    program.plan(program={"w0": ["137", "0"]})
    dry = program.run("local.sh", "run", "--dry-run", "--", "jaxsae", "a b")
    assert "start jaxsae 'a b'" in dry.stdout
    assert program.starts("w0") == 0
    done = program.run("local.sh", "run", "--poll=0.05", "--", "jaxsae")
    assert done.returncode == 0
    assert program.starts("w0") == 2


def test_a_signal_lets_the_program_save(program):
    program.plan(program={"w0": ["wait"]})
    launcher = program.start("local.sh", "run", "--", "jaxsae")
    for _ in range(200):
        if program.starts("w0"):
            break
        time.sleep(0.05)
    time.sleep(0.5)
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=20)
    assert launcher.returncode == 143
    assert (program.folder / "saved-w0").read_text() == "saved\n"


def test_stop_is_not_undone_by_the_run_that_is_still_alive(program):
    program.plan(program={"w0": ["wait", "0"]})
    launcher = program.start("local.sh", "run", "--poll=0.05", "--", "jaxsae")
    program.wait_for(lambda: program.starts("w0") and program.shows_log())
    stopped = program.run("local.sh", "stop")
    assert ", asked to stop\n" in stopped.stdout
    _, errors = launcher.communicate(timeout=20)
    assert launcher.returncode == 143, errors
    assert errors.count("\n") == 1
    assert "stopped with the verb stop" in errors
    assert program.starts("w0") == 1
    assert program.run("local.sh", "run", "--", "jaxsae").returncode == 0
    assert program.starts("w0") == 2
    assert "asked to stop" not in program.run("local.sh", "status").stdout


def test_a_stop_between_a_crash_and_the_restart_holds(program):
    program.plan(program={"w0": ["137", "0"]})
    launcher = program.start("local.sh", "run", "--poll=2", "--", "jaxsae")
    program.wait_for(lambda: (program.cwd / "jaxsae-launch/status").exists())
    time.sleep(0.5)
    program.run("local.sh", "stop")
    _, errors = launcher.communicate(timeout=20)
    assert launcher.returncode == 143, errors
    assert program.starts("w0") == 1


def test_a_second_stop_does_not_cut_the_save_short(program):
    program.plan()
    terms, saved = program.folder / "terms", program.folder / "saved"
    slow = f"trap 'echo TERM >>{terms}' TERM; echo up >{terms}; until [ -e {saved} ]; do sleep 0.05; done; exit 143"
    assert program.run("local.sh", "run", "--detach", "--", "bash", "-c", slow).returncode == 0
    program.wait_for(terms.exists)
    stops = []
    for _ in range(2):
        stops.append(program.start("local.sh", "stop"))
        program.wait_for(lambda: "TERM" in terms.read_text())
    time.sleep(0.5)
    saved.touch()
    for stop in stops:
        out, _ = stop.communicate(timeout=20)
        assert "ended 143" in out
    assert terms.read_text() == "up\nTERM\n"


def test_a_program_that_does_not_end_is_killed_after_the_grace(program):
    program.plan()
    slow = ("--", "bash", "-c", "trap '' TERM; echo deaf; sleep 60; sleep 60")
    assert program.run("local.sh", "run", "--detach", *slow).returncode == 0
    time.sleep(0.3)
    stopped = program.run("local.sh", "stop", "--grace=0")
    assert "killed; what it last saved is kept" in stopped.stdout
    assert "ended 137" in stopped.stdout


def test_an_environment_of_its_own(cloud):
    own = ("--package=jaxsae==0.1.0", "--root=env here")
    done = cloud.run("local.sh", "run", *own, "--", "jaxsae", "doctor", WORKER="w0")
    assert done.returncode == 0, done.stderr
    assert cloud.args("w0") == ["doctor"]
    assert cloud.calls("uv")[-1][-1] == "jaxsae==0.1.0"


def test_the_environment_of_a_command_that_runs_is_not_replaced(cloud):
    cloud.plan(program={"w0": ["wait"]})
    cloud.env["WORKER"] = "w0"
    command = ("--", "jaxsae", "doctor")
    assert cloud.run("local.sh", "run", "--detach", "--package=jaxsae==0.1.0", *command).returncode == 0
    other = cloud.run("local.sh", "run", "--detach", "--package=jaxsae==0.2.0", *command)
    assert other.returncode == 1
    assert "with Python 3.12 and 'jaxsae==0.2.0'; stop it first" in other.stderr
    assert (cloud.cwd / "jaxsae-launch/env/bin/jaxsae").exists()
    assert len([call for call in cloud.calls("uv") if call[1] == "pip"]) == 1
    assert cloud.run("local.sh", "run", "--detach", "--package=jaxsae==0.1.0", *command).returncode == 0
    assert cloud.starts("w0") == 1


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("run",), "no command to run"),
        (("run", "--spot", "--", "jaxsae"), "unknown option '--spot'"),
        (("go",), "unknown verb 'go'; possible: run"),
    ],
)
def test_a_wrong_call_is_one_sentence(cloud, args, sentence):
    done = cloud.run("local.sh", *args)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_program_is_one_sentence(cloud):
    done = cloud.run("local.sh", "run", "--", "jaxsae")
    assert done.returncode == 1
    assert "'jaxsae' is not on the PATH; install jaxsae first" in done.stderr
