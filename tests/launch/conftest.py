"""A pretended cloud for the launch scripts: its tools come first, and alone, on the PATH."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
FAKES = ("gcloud", "kubectl", "uv", "sbatch", "srun", "scancel", "scontrol", "squeue")
REAL = """bash sh env cat cp mv rm mkdir mktemp chmod touch grep sed sort uniq head tail wc tr cut dirname basename date
setsid flock sleep cksum pgrep ps"""


class Cloud:
    """The scripts' surroundings: what exists, what was called, what the program did."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in REAL.split():
            (self.bin / name).symlink_to(str(shutil.which(name)))
        fake = f"#!{sys.executable} -SE\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        for name in FAKES:
            (self.bin / name).write_text(fake + "import fake_tool\nfake_tool.main()\n")
            (self.bin / name).chmod(0o755)
        (self.bin / "hostname").write_text('#!/usr/bin/env bash\necho "${WORKER:-here}"\n')
        (self.bin / "hostname").chmod(0o755)
        self.cwd = folder / "cwd"
        self.cwd.mkdir()
        self.env = {"PATH": str(self.bin), "HOME": str(folder), "FAKE_CLOUD": str(folder), "TMPDIR": str(folder)}
        self.plan()

    def plan(self, *lives: dict, program: dict[str, list[str]] | None = None, **more) -> None:
        """`lives`: what each creation leads to; `program`: how each start of the program ends, by worker."""
        (self.folder / "plan.json").write_text(json.dumps({"lives": lives or [{"states": ["ACTIVE"]}], **more}))
        for worker, ends in (program or {}).items():
            (self.folder / f"program-{worker}").write_text("".join(f"{end}\n" for end in ends))

    def run(self, script: str, *args: str, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", str(LAUNCH / script), *args],
            env={**self.env, **env},
            cwd=self.cwd,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(self, script: str, *args: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(LAUNCH / script), *args],
            env=self.env,
            cwd=self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def wait_for(condition) -> None:
        for _ in range(300):
            if condition():
                return
            time.sleep(0.05)
        raise AssertionError("it did not happen within 15 s")

    def calls(self, tool: str = "gcloud") -> list[list[str]]:
        """Every call of a tool, as the words it was called with."""
        path = self.folder / "calls.jsonl"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if call[0] == tool]

    def verbs(self) -> list[str]:
        """The gcloud calls in short: `queued-resources create`, and for ssh the verb of worker.sh."""
        short = []
        for call in self.calls():
            if call[1] == "auth":
                continue
            command = next((word for word in call if word.startswith("--command=")), None)
            short.append(f"ssh {command.split()[2]}" if command else " ".join(call[3:5]))
        return short

    def args(self, worker: str, start: int = 1) -> list[str]:
        """What the program got on a worker."""
        return (self.folder / f"args-{worker}-{start}").read_text().split("\0")[:-1]

    def starts(self, worker: str) -> int:
        path = self.folder / f"starts-{worker}"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def shows_log(self) -> bool:
        """Whether some worker's log is being followed right now."""
        return self.followers() > 0

    def followers(self) -> int:
        """By how many."""
        found = subprocess.run(["pgrep", "-c", "-f", f"^tail .*{self.folder}"], capture_output=True, text=True)
        return int(found.stdout)

    def end_programs(self) -> None:
        for pid_file in self.folder.glob("**/pid"):
            supervisor = int(pid_file.read_text().split()[0])
            if (Path("/proc") / str(supervisor)).exists():
                os.killpg(supervisor, 9)


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.end_programs()
