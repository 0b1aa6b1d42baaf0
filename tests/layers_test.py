"""The plan of the house, enforced: imports go downward, the front door is light, files stay small."""

import ast
import pathlib
import subprocess
import sys

import pytest

import jaxsae

ROOT = pathlib.Path(jaxsae.__file__).parent

#: Bottom to top.  Within a line, left may not import right.
LAYERS = [
    ["typing", "errors", "config", "packages"],
    ["parallel", "kernels"],
    ["sae", "objective", "optim"],
    ["recipes"],
    ["hosts"],
    ["data", "io"],
    ["evals", "uses", "torch", "flax"],
    ["train", "plan", "report", "science"],
    ["cli", "testing"],
]
ORDER = [name for line in LAYERS for name in line]

#: Never loaded by `import jaxsae`: heavy, or optional.
HEAVY = ("torch", "transformers", "matplotlib", "orbax", "tensorstore", "grain", "tyro", "wandb", "pandas", "gguf")


def imports(path: pathlib.Path) -> set[str]:
    """Top folders of jaxsae that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxsae":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {a.name for a in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("jaxsae.")}
    return found & set(ORDER)


FILES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem not in ("__init__", "__main__"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in ORDER, f"{own} has no layer; add it to docs/architecture.md and to LAYERS"
    above = {name for name in imports(path) if ORDER.index(name) > ORDER.index(own)}
    allowed = {"cli"} & above if own == "testing" else set()
    assert above <= allowed, f"{own} may not import {sorted(above)}"


def test_nothing_but_tests_imports_testing():
    users = [p for p in FILES if "testing" in imports(p) and "testing" not in p.parts]
    assert not users


def test_the_front_door_is_light():
    code = "import sys, jaxsae, jaxsae.sae, jaxsae.recipes; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(HEAVY) & set(out)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path):
    if "kernels" not in path.parts:
        assert len(path.read_text().splitlines()) <= 500
