"""Stands in for gcloud, kubectl, sbatch, ... on the PATH of a test: the name it is called by says which.

It refuses every sub-command and flag that `reference.json` does not list, writes down each call, and plays what the
test's `plan.json` says.  The workers of the pretended TPU VM are folders; what is sent to them really runs there.
"""

import contextlib
import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).parent
CLOUD = Path(os.environ["FAKE_CLOUD"])
PLAN = json.loads((CLOUD / "plan.json").read_text())
TOOL = Path(sys.argv[0]).name  # slower imports stand where they are needed: a test starts this many times


def refuse(message: str, status: int = 2) -> NoReturn:
    print(f"ERROR: ({TOOL}) {message}", file=sys.stderr)
    sys.exit(status)


def parsed(args: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """(sub-command, positionals, flags), all of them checked against the tool's reference."""
    reference = json.loads((HERE / "reference.json").read_text())[TOOL]
    commands = reference["commands"]
    command = next((c for c in sorted(commands, key=len, reverse=True) if args[: len(c.split())] == c.split()), None)
    if command is None:
        refuse(f"Invalid choice: {' '.join(args[:4])!r}.")
    rest, spec = args[len(command.split()) :], commands[command]
    known, positionals, flags = {**reference["wide"], **spec["flags"]}, [], {}
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("-"):
            positionals.append(arg)
            if TOOL in ("sbatch", "srun"):  # the script or program; what follows is its own
                positionals += rest
                break
            continue
        name, equals, value = arg.partition("=")
        kind = known.get(name)
        if kind is None or (kind == "switch" and equals):
            refuse(f"unrecognized arguments: {arg}")
        if kind == "value" and not equals:
            value = rest.pop(0) if rest else refuse(f"argument {name}: expected one argument")
        flags[name] = value
    if spec["positionals"] is not None and len(positionals) > spec["positionals"]:
        refuse(f"unrecognized arguments: {positionals[-1]}")
    missing = [name for name in spec["required"] if name not in flags]
    if missing:
        refuse(f"argument {missing[0]}: Must be specified.")
    return command, positionals, flags


@contextlib.contextmanager
def state():
    """The pretended cloud's memory, one process at a time; whole even when this process is killed in between."""
    kept, new = CLOUD / "state.json", CLOUD / "state.new"
    with open(CLOUD / "state.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fresh = {"life": -1, "step": 0, "exists": False, "preempted": False, "told": {}}
        memory = json.loads(kept.read_text()) if kept.exists() else fresh
        yield memory
        new.write_text(json.dumps(memory))
        new.replace(kept)


def not_found(kind: str, name: str) -> NoReturn:
    refuse(f"NOT_FOUND: Resource 'projects/p/locations/z/{kind}/{name}' was not found", 1)


def life(memory: dict) -> dict:
    return PLAN["lives"][min(memory["life"], len(PLAN["lives"]) - 1)]


def step_of(memory: dict, states: list[str]) -> str:
    memory["step"] += 1
    return states[min(memory["step"], len(states)) - 1]


def workers() -> list[Path]:
    return [CLOUD / f"w{i}" for i in range(PLAN.get("workers", 2))]


def wipe_workers() -> None:
    """What a preemption or a deletion does: every program killed, every disk gone."""
    import shutil

    for worker in workers():
        for pid_file in worker.glob("jaxsae-launch/pid"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid_file.read_text().split()[0]), 9)
        shutil.rmtree(worker, ignore_errors=True)


def gcloud(command: str, names: list[str], flags: dict[str, str]) -> None:
    error = PLAN.get("errors", {}).get(command)
    if error:
        refuse(error, 1)
    if command == "auth list":
        print(PLAN.get("account", "someone@example.com"))
        return
    if "--project" not in flags or "--zone" not in flags:
        refuse("The required property [project] or [zone] is not currently set.")
    group, verb = command.split()[2:]
    if verb in ("ssh", "scp"):
        reach(verb, names, flags)
        return
    with state() as memory:
        if verb == "create":
            if memory["exists"]:
                refuse("ALREADY_EXISTS", 1)
            memory.update(life=memory["life"] + 1, step=0, exists=True, preempted=False, kind=group)
            for worker in workers():
                worker.mkdir()
        elif not memory["exists"]:
            not_found(group, names[0])
        elif verb == "delete":
            if group == "queued-resources" and "--force" not in flags:
                refuse("FAILED_PRECONDITION: the queued resource has nodes", 1)
            memory["exists"] = False
            wipe_workers()
        elif verb == "describe":
            describe(memory, group, names[0], flags)


def describe(memory: dict, group: str, name: str, flags: dict[str, str]) -> None:
    if flags["--format"] == "value(state.failedData.error.message)":
        print("no capacity before the end of the interval")
    elif group == memory["kind"]:
        fields = {"queued-resources": "value(state.state)", "tpu-vm": "value(state)"}
        if flags["--format"] != fields[group]:
            refuse(f"no such field: {flags['--format']}", 1)
        after = ["SUSPENDING", "SUSPENDED"] if group == "queued-resources" else ["PREEMPTED"]
        memory["told"] = step_of(memory, after if memory["preempted"] else life(memory)["states"])
        print(memory["told"])
    elif memory["preempted"] or memory["told"] != "ACTIVE":
        not_found("nodes", name)
    else:
        print("READY")


def reach(verb: str, names: list[str], flags: dict[str, str]) -> None:
    import shutil
    import subprocess

    with state() as memory:
        if not memory["exists"] or memory["preempted"]:
            not_found("nodes", names[0])
        preempt, drop = life(memory).get("preempt"), PLAN.get("drop", 0) > memory.get("dropped", 0)
    chosen = workers() if flags.get("--worker") == "all" else [workers()[int(flags.get("--worker", "0"))]]
    if verb == "scp":
        source, target = names
        if "--recurse" not in flags or not target.endswith(":"):
            refuse(f"cannot copy {names}", 1)
        for worker in chosen:
            shutil.copytree(source, worker / Path(source).name, dirs_exist_ok=True)
        return
    following = "worker.sh follow" in flags["--command"]
    if following and (preempt or drop):
        time.sleep(0.3)  # so that the program has begun
        with state() as memory:
            memory["preempted"] = bool(preempt)
            memory["step"] = 0 if preempt else memory["step"]
            memory["dropped"] = memory.get("dropped", 0) + 1
        if preempt:
            wipe_workers()
        refuse("[ssh] exited with return code [255].", 255)
    # gcloud splits the command at spaces and ssh joins the pieces again
    line = " ".join(flags["--command"].split(" "))

    running = [
        subprocess.Popen(
            ["bash", "-c", line],
            cwd=worker,
            env={"HOME": str(worker), "WORKER": worker.name, "PATH": os.environ["PATH"], "FAKE_CLOUD": str(CLOUD)},
            stdin=subprocess.DEVNULL,
        )
        for worker in chosen
    ]
    statuses = [process.wait() for process in running]
    sys.exit(next((status for status in statuses if status), 0))


def kubectl(command: str, words: list[str], flags: dict[str, str]) -> None:
    error = PLAN.get("errors", {}).get(command)
    if error:
        refuse(error, 1)
    if command == "apply":
        (CLOUD / "applied.yaml").write_text(Path(flags["--filename"]).read_text())
    elif command == "get" and "--output" in flags and flags["--output"].startswith("jsonpath"):
        with state() as memory:
            answer = step_of(memory, PLAN["conditions"])
        if answer.startswith("error: "):
            refuse(answer.removeprefix("error: "), 1)
        print(answer)
    elif command == "logs":
        print("log of", flags["--selector"])
        if PLAN.get("log_seconds"):
            time.sleep(PLAN["log_seconds"])


def uv(command: str, words: list[str], flags: dict[str, str]) -> None:
    if command == "venv":
        binaries = Path(words[0]) / "bin"
        binaries.mkdir(parents=True)
        (binaries / "python").write_text("#!/usr/bin/env bash\necho Python 3.12.0\n")
        (binaries / "python").chmod(0o755)
    elif PLAN.get("errors", {}).get("pip install"):
        refuse(PLAN["errors"]["pip install"], 1)
    else:
        program = Path(flags["--python"]).parent / "jaxsae"
        program.write_text((HERE / "fake_jaxsae.sh").read_text())
        program.chmod(0o755)


def srun(_: str, words: list[str], flags: dict[str, str]) -> None:
    if "tasks" not in PLAN:
        os.execvp(words[0], words)
    import subprocess

    tasks = [subprocess.Popen(words, env={**os.environ, "SLURM_PROCID": str(i)}) for i in range(PLAN["tasks"])]
    # as srun's manual says: the highest status, unless a task itself was ended by a signal
    sys.exit(max((s < 0, abs(s)) for s in [task.wait() for task in tasks])[1])


def main() -> None:
    with open(CLOUD / "calls.jsonl", "a") as log:
        log.write(json.dumps([TOOL, *sys.argv[1:]]) + "\n")
    command, words, flags = parsed(sys.argv[1:])
    action = {"gcloud": gcloud, "kubectl": kubectl, "uv": uv, "srun": srun}.get(TOOL)
    if action:
        action(command, words, flags)
    elif PLAN.get("errors", {}).get(TOOL):
        refuse(PLAN["errors"][TOOL], 1)
    elif TOOL == "sbatch":
        print("4711")
