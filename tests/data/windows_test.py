"""Windows: every token of every document once, where the policy says, from any point on."""

import json

import numpy as np
import pytest

from jaxsae.data.shuffle import heldout
from jaxsae.data.windows import PADDING, TextPolicy, WindowStream
from jaxsae.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
TEXTS = ["".join(RNG.choice(list("abcdefgh"), n)) for n in RNG.integers(0, 40, 50)]


class Letters:
    """One token per letter; with `special`, words give their first letter, none gives 0, and `<X>` gives 99."""

    eos_id, bos_id, special_ids = 1, 2, frozenset({1, 2, 99})

    def encode(self, text, special=False):
        if special:
            return [99 if piece == "<X>" else t for piece in text.split(" ") for t in self.encode(piece)[:1] or [0]]
        return [ord(c) for c in text]


class NoBos(Letters):
    bos_id = None


def run(policy, texts=TEXTS, tokenizer=Letters, count=None, **kw):
    stream = WindowStream(texts, tokenizer(), policy, **kw)
    return [w for _, w in zip(range(10**6 if count is None else count), stream, strict=False)]


def documents(windows):
    """The tokens of each document as the windows hold them, without padding."""
    found = {}
    for split in ("train", "heldout"):
        mine = [w for w in windows if w.split == split]
        for w in mine:
            for token, doc, position in zip(w.tokens.tolist(), w.doc.tolist(), w.position.tolist(), strict=True):
                if doc != PADDING:
                    assert position == len(found.setdefault(doc, []))  # in order, without a gap
                    found[doc].append(token)
    return found


@pytest.mark.parametrize("packing", ["packed", "separate"])
@pytest.mark.parametrize("eos", [True, False])
def test_every_token_of_every_document_once(packing, eos):
    windows = run(TextPolicy(16, packing, eos=eos), heldout_fraction=0.2)
    expected = {i: [ord(c) for c in t] + [1] * eos for i, t in enumerate(TEXTS) if t}
    assert documents(windows) == expected
    assert all(w.tokens.shape == (16,) for w in windows)


def test_documents_do_not_share_windows_with_the_other_split():
    windows = run(TextPolicy(16), heldout_fraction=0.2)
    docs = {s: {d for w in windows if w.split == s for d in w.doc.tolist()} - {PADDING} for s in ("train", "heldout")}
    assert not docs["train"] & docs["heldout"]
    expected = {int(d) for d in np.flatnonzero(heldout(50, 0.2, 0)) if TEXTS[d]}
    assert docs["heldout"] == expected


def test_packed_windows_are_full_but_the_last():
    windows = run(TextPolicy(16))
    assert all((w.doc != PADDING).all() for w in windows[:-1])


def test_separate_documents_begin_windows():
    for w in run(TextPolicy(16, "separate")):
        assert len(set(w.doc.tolist()) - {PADDING}) == 1
        assert w.position[0] % 16 == 0


@pytest.mark.parametrize("packing", ["packed", "separate"])
def test_bos_before_each_window(packing):
    windows = run(TextPolicy(16, packing, bos="window"))
    assert all(w.tokens[0] == 2 for w in windows)
    without = {d: [t for t in tokens if t != 2] for d, tokens in documents(windows).items()}
    assert without == {i: [ord(c) for c in t] + [1] for i, t in enumerate(TEXTS) if t}


def test_bos_before_each_document():
    found = documents(run(TextPolicy(16, bos="document")))
    assert found == {i: [2, *map(ord, t), 1] for i, t in enumerate(TEXTS) if t}


def test_chat_template_reads_special_tokens_and_documents_do_not():
    policy = TextPolicy(64, "separate", chat_template="<X> u {text} <X>", eos=False)
    assert documents(run(policy, ["a<X>b"]))[0] == [99, ord("u"), 0, *map(ord, "a<X>b"), 0, 99]


@pytest.mark.parametrize("packing", ["packed", "separate"])
@pytest.mark.parametrize("bos", ["none", "window", "document"])
@pytest.mark.parametrize("endless", [False, True])
def test_goes_on_from_any_window(packing, bos, endless):
    policy = TextPolicy(16, packing, bos=bos)
    kw = {"heldout_fraction": 0.2, "seed": 4, "endless": endless}
    straight = run(policy, count=150, **kw)
    for stop in (0, 1, 7, 40, len(straight) - 1, len(straight)):
        stream = WindowStream(TEXTS, Letters(), policy, **kw)
        for _ in range(stop):
            next(stream)
        state = json.loads(json.dumps(stream.state()))
        rest = run(policy, count=150 - stop, state=state, **kw)[: len(straight) - stop]
        assert len(rest) == len(straight) - stop
        for a, b in zip(straight[stop:], rest, strict=True):
            assert a.split == b.split
            for x, y in zip(a[:3], b[:3], strict=True):
                np.testing.assert_array_equal(x, y)


def test_parts_share_the_documents():
    found = [documents(run(TextPolicy(16), part=i, parts=3, heldout_fraction=0.1)) for i in range(3)]
    assert sum(map(len, found)) == len({k for f in found for k in f}) == sum(bool(t) for t in TEXTS)
    whole = {d for w in run(TextPolicy(16), heldout_fraction=0.1) if w.split == "heldout" for d in w.doc.tolist()}
    parts = [run(TextPolicy(16), part=i, parts=3, heldout_fraction=0.1) for i in range(3)]
    assert {d for p in parts for w in p if w.split == "heldout" for d in w.doc.tolist()} == whole


def test_the_order_of_documents():
    def firsts(**kw):
        return list(documents(run(TextPolicy(16, "separate"), **kw)))

    assert firsts(shuffle=False) == sorted(firsts(shuffle=False))
    assert firsts(seed=0) != firsts(seed=1)


def test_endless_begins_again_in_another_order():
    windows = run(TextPolicy(16, "separate"), endless=True, count=400, heldout_fraction=0.3)
    assert {w.split for w in windows} == {"train"}
    starts = [int(w.doc[0]) for w in windows if w.position[0] == 0]
    epoch = sum(bool(t) for t in TEXTS)
    first, second = starts[:epoch], starts[epoch : 2 * epoch]
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (TextPolicy(bos="window"), "tokenizer has no BOS token"),
        (TextPolicy(context_size=1), "at least 2 tokens"),
        (TextPolicy(chat_template="user: "), "exactly once"),
    ],
)
def test_impossible_policies(policy, message):
    with pytest.raises(ConfigError, match=message):
        run(policy, tokenizer=NoBos)


def test_no_text_no_windows():
    assert run(TextPolicy(16), ["", ""]) == []
    with pytest.raises(DataError, match="no token in any of the 2 documents"):
        run(TextPolicy(16), ["", ""], endless=True)
