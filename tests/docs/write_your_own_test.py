"""The page "write your own method": its code runs as it stands, is short, and what it makes is an ordinary coder."""

import pathlib
import re
import subprocess
import sys

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "write-your-own-method.md"
CHECKS = """
import numpy as np
assert np.isfinite(float(metrics["loss"])) and "crowding" in metrics
start = init(recipe, jax.random.key(0), batch)
first = recipe.loss(*recipe.split(start.params), start, batch)
assert float(metrics["loss"]) < float(first[0]), "ten steps did not lower the loss"
np.testing.assert_array_equal(again(batch["x"]), sae(batch["x"]))
z = np.asarray(again.encode(batch["x"]).dense())
assert 0 < (z > 0).sum(1).mean() < 32
from jaxsae.testing.conformance import check_member
import dataclasses
small = dataclasses.replace(recipe, encoder=PreSelect(Affine(12, 64, b_pre="b_dec"), RelativeMargin(0.4)),
                            dictionary=Unit(64, 12), readout=Bias(12))
check_member(small, jax.random.key(0))
print("done")
"""


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_selector_and_term_take_less_than_60_lines():
    lines = [line for block in blocks()[:2] for line in block.splitlines() if line.strip()]
    assert len(lines) < 60
    assert len(blocks()) == 3


def test_the_code_of_the_page_trains_exports_and_reloads(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("\n".join(blocks()) + CHECKS)
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("done\n")
