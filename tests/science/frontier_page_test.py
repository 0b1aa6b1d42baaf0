"""The table that a frontier's section shows."""

import pytest

from jaxsae.science.page import page


def _points(family, seed, *values):
    return [
        {"family": family, "seed": seed, "l0": l0, "fvu": fvu, "loss_recovered_mean": recovered, "dead_share": dead}
        for l0, fvu, recovered, dead in values
    ]


@pytest.fixture
def rows():
    points = [
        *_points("topk", 0, (8, 0.4, 0.8, 0.1), (32, 0.1, 0.8, 0.2)),
        *_points("topk", 1, (8, 0.8, 0.9, 0.0), (32, 0.2, 0.9, 0.1)),
        *_points("pca", 0, (8, 0.9, -0.1, 0.0), (16, 0.8, 0.2, 0.0)),
    ]
    study = {"d_sae": 8, "steps": 2, "rows": 4, "lr": 0.1, "eval_rows": 4, "ce_tokens": 4}
    how = dict.fromkeys(("command", "finished", "machine", "device", "jaxsae", "python"), "") | {"packages": {}}
    text = page({}, {"study": study, "points": points, "data": "rows", "run": how})
    return {
        line.split(" | ")[0].strip("| "): line.strip("|").split("|")[1:] for line in text.split("\n") if "|" in line
    }


def test_a_frontier_is_read_off_on_lines_between_logarithms(rows):
    """(8, 0.4) and (32, 0.1) meet L0 = 16 at sqrt(0.4 * 0.1) = 0.2, the other seed at 0.4; deviation 0.1 sqrt(2)."""
    at_16, recovered, at_32, _, dead = (cell.strip() for cell in rows["topk"])
    assert (at_16, recovered) == ("0.300 ± 0.141", "0.850 ± 0.071")
    assert at_32 == "0.150 ± 0.071"
    assert dead == "0.150 ± 0.071"


def test_what_was_not_measured_on_both_sides_is_a_dash(rows):
    at_16, recovered, at_32, *_ = (cell.strip() for cell in rows["pca"])
    assert (at_16, recovered, at_32) == ("0.800", "–", "–")
