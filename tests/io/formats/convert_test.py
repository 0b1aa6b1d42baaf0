"""`jaxsae convert`: converts, proves it, says what it did, and leaves nothing behind when it cannot."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.cli.convert import Convert
from jaxsae.errors import FormatError
from jaxsae.io import load, save
from jaxsae.io.compare import compare
from jaxsae.sae import make_sae

GOLDEN = Path(__file__).parents[2] / "golden"


def tiny(seed=0, **options):
    rng = np.random.default_rng(seed)
    arrays = {"W_enc": (6, 9), "b_enc": (9,), "W_dec": (9, 6), "b_dec": (6,)}
    params = {n: jnp.asarray(rng.standard_normal(a), jnp.float32) for n, a in arrays.items()}
    return make_sae(params, **options)


def test_one_dictionary(tmp_path, capsys):
    source = str(GOLDEN / "sae_lens" / "standard")
    result = Convert(src=source, dst=str(tmp_path / "x"), to="gemma_scope").run()
    printed = capsys.readouterr().out
    assert result["support_agreement"] == 1.0
    assert result["codes"] <= 1e-5
    assert "centring" in result["folded"][0]
    assert "largest difference" in printed
    assert "support agreement 1.000000" in printed
    assert json.loads((tmp_path / "x.convert.json").read_text()) == result
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "x.convert.json"]
    assert compare(load(source), load(tmp_path / "x")).reconstruction <= 2e-5


def test_one_file(tmp_path):
    Convert(src=str(GOLDEN / "gemma_scope" / "sae"), dst=str(tmp_path / "a.npz"), to="gemma_scope").run()
    assert load(tmp_path / "a.npz").d_sae == 64


def test_where_the_result_goes(tmp_path, monkeypatch):
    """The URL of a folder is that folder; a bucket, and a place where nothing can be made, are refused."""
    monkeypatch.chdir(tmp_path)
    save(tiny(), f"file://{tmp_path}/a")
    Convert(src="a", dst=f"file://{tmp_path}/b", to="sae_lens").run()
    for place, words in (("gs://bucket/b", "expected a folder or file of this machine"), ("a/cfg/b", "cannot be writ")):
        (tmp_path / "a" / "cfg").write_text("")
        with pytest.raises(FormatError, match=words):
            Convert(src="b", dst=place, to="jaxsae").run()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "b.convert.json"]


def test_latents_in_other_units_are_compared_in_theirs(tmp_path):
    save(tiny(k=3, by_norm=True), tmp_path / "a")
    result = Convert(src=str(tmp_path / "a"), dst=str(tmp_path / "b"), to="sae_lens").run()
    assert result["codes"] <= 1e-5
    assert any("multiplied by the norm" in note for note in result["folded"])


def test_what_cannot_be_expressed_leaves_nothing(tmp_path):
    convert = Convert(src=str(GOLDEN / "sae_lens" / "gated"), dst=str(tmp_path / "x"), to="sparsify")
    with pytest.raises(FormatError, match="cannot express"):
        convert.run()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FormatError, match="no format is called"):
        Convert(src=str(GOLDEN), dst=str(tmp_path / "x"), to="safetensor").run()


def test_a_result_that_differs_is_refused(tmp_path):
    save(tiny(), tmp_path / "a")
    convert = Convert(src=str(tmp_path / "a"), dst=str(tmp_path / "b"), to="sae_lens", output_tolerance=-1.0)
    with pytest.raises(FormatError, match=r"differs from itself.*nothing was written"):
        convert.run()
    assert not (tmp_path / "b").exists()


def test_a_folder_of_many(tmp_path, capsys):
    for i in range(3):
        save(tiny(i, k=2), tmp_path / "in" / f"layer_{i}" / "width_9", format="sae_lens")
    summary = Convert(src=str(tmp_path / "in"), dst=str(tmp_path / "out"), to="sparsify", rows=8).run()
    assert len(summary["converted"]) == 3
    assert summary["failed"] == []
    for i in range(3):
        back = load(tmp_path / "out" / f"layer_{i}" / "width_9")
        np.testing.assert_array_equal(np.asarray(back.W_dec), np.asarray(tiny(i, k=2).W_dec))
    assert capsys.readouterr().out.count("largest difference") == 3


def test_a_folder_of_many_reports_those_it_could_not_convert(tmp_path):
    save(tiny(k=2), tmp_path / "in" / "a", format="sae_lens")
    save(load(GOLDEN / "sae_lens" / "gated"), tmp_path / "in" / "b", format="sae_lens")
    (tmp_path / "in" / "c").mkdir()
    (tmp_path / "in" / "c" / "sae.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(FormatError, match=r"2 of 3 dictionaries were not converted"):
        Convert(src=str(tmp_path / "in"), dst=str(tmp_path / "out"), to="sparsify", rows=8).run()
    assert load(tmp_path / "out" / "a").k == 2
    report = json.loads((tmp_path / "out.convert.json").read_text())
    assert len(report["failed"]) == 2


def test_nothing_to_convert(tmp_path):
    with pytest.raises(FormatError, match="expected the files of a known format"):
        Convert(src=str(tmp_path), dst=str(tmp_path / "x"), to="sae_lens").run()


def test_comparison_sees_a_difference():
    a, b = tiny(), tiny()
    assert compare(a, b, rows=8).codes == 0
    moved = make_sae({**b.params, "b_enc": b.b_enc + 0.01})
    found = compare(a, moved, rows=8)
    assert found.codes > 1e-3
    assert found.support_agreement < 1
    scaled = make_sae({**b.params, "b_dec": b.b_dec + 0.01})
    assert compare(a, scaled, rows=8).codes == 0
    assert compare(a, scaled, rows=8).reconstruction > 1e-3
