"""What is put on the page is what was measured."""

import json

import numpy as np
import pytest

from jaxsae.evals.contexts import Context
from jaxsae.report.collect import Words, _context, curves, whole_characters
from jaxsae.report.page import plain


def data_of(page):
    text = page.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0]
    return json.loads(text)


def test_contexts_can_be_read_back(subject):
    values = np.array([0, 0.5, 0, 2.0, -1.0], np.float32)
    tokens = np.array([5, 6, 5, 90, 7], np.int32)
    words = Words(subject)
    doc, peak, places, pairs = _context(Context(0, 1, 42, tokens, values, 3), 2.0, words)
    assert (doc, peak) == (42, 3)
    assert [words.texts[p] for p in places] == subject.host.tokenizer.token_strings(tokens)
    assert dict(zip(pairs[::2], pairs[1::2], strict=True)) == {1: 250, 3: 1000, 4: -500}


@pytest.mark.parametrize("text", ["Chișinău", "日本語", "a😀b", "plain"])
def test_bytes_of_one_character_are_joined_across_tokens(text, subject):
    tokenizer = subject.host.tokenizer  # one token per byte
    shown = whole_characters(tokenizer.token_strings(tokenizer.encode(text)))
    assert "".join(shown) == text
    assert len(shown) == len(text.encode())
    cut = tokenizer.token_strings(tokenizer.encode("é"))[:1]
    assert whole_characters(cut) == cut


def test_curves_keep_the_last_point_and_mark_gaps(log):
    long = [{"kind": "train", "step": i, "tokens": i, "time": 0.0, "loss": float(i)} for i in range(5001)]
    out = curves(long)["train"]
    assert len(out["x"]) <= 402
    assert (out["x"][0], out["x"][-1], out["y"]["loss"][-1]) == (0, 5000, 5000.0)
    holes = curves([{"kind": "train", "tokens": 1, "a": 1.0}, {"kind": "train", "tokens": 2, "a": None, "b": 2.0}])
    assert holes["train"]["y"] == {"a": [1.0, None], "b": [None, 2.0]}
    assert set(curves(log)) == {"train", "heldout"}
    assert curves([{"kind": "event", "step": 1, "event": "saved"}]) == {}


def test_page_and_json_agree_with_the_evaluation(built):
    page, report = built
    data = data_of(page)
    assert data["title"] == "a <b>run</b>"
    assert plain(data["runs"][0]["metrics"])["fvu"] == pytest.approx(report["fvu"])
    assert json.loads(page.with_suffix(".json").read_text()) == plain(report)
    assert len(data["runs"][0]["latents"]) == report["latents_shown"] >= 200


def test_every_latent_shows_quantiles_text_and_words(built):
    data = data_of(built[0])
    run = data["runs"][0]
    for latent in run["latents"]:
        assert latent["g"][0][0] == "max"
        assert len(latent["p"]) == len(latent["s"]) == 8
        assert latent["g"][0][1][0][3], "the strongest context marks its token"
    often = [latent for latent in run["latents"] if latent["d"] > 0.02]
    assert all([name for name, _ in latent["g"]] == ["max", "0.9", "0.75", "0.5", "0.25", "0.1"] for latent in often)
    assert sum(run["density"]["counts"]) + run["density"]["dead"] == run["shape"]["d_sae"]


def test_two_subjects_refer_to_each_other(compared):
    page, report = compared
    a, b = data_of(page)["runs"]
    assert report["compare"]["d_sae"] == 400
    assert max(j for latent in a["latents"] for j, _ in latent["o"]) < 400
    assert all(1 >= latent["o"][0][1] >= latent["o"][1][1] for latent in b["latents"])
