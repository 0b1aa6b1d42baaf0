"""The picture: well-formed, one line per family, means and spreads over seeds."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from jaxsae.science.picture import PANELS, curves, draw

POINTS = [
    {"family": f, "setting": s, "seed": seed, "k": None, "l0": l0 + seed, "fvu": fvu + 0.01 * seed, **extra}
    for f, extra in (("topk", {"loss_recovered_mean": 0.9}), ("a<b", {"loss_recovered_mean": None}))
    for s, l0, fvu in (("8", 8, 0.4), ("16", 16, 0.2))
    for seed in (0, 1, 2)
]


def test_points_are_means_over_seeds_sorted_by_l0():
    rows = curves(POINTS[::-1], "fvu")["topk"]
    assert [r[0] for r in rows] == [9, 17]
    assert [r[1] for r in rows] == pytest.approx([0.41, 0.21])
    assert rows[0][2] == pytest.approx(np.std([0.4, 0.41, 0.42], ddof=1))
    assert "a<b" not in curves(POINTS, "loss_recovered_mean")


def test_the_picture_is_well_formed_and_escapes():
    root = ET.fromstring(draw(POINTS, PANELS, "layer 9 & others"))
    name = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f".//{name}polyline")) == 3  # two families with FVU, one with loss recovered
    texts = [t.text for t in root.iter(f"{name}text")]
    assert "a<b" in texts
    assert "layer 9 & others" in texts
