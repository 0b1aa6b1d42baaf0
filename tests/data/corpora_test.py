"""Corpora: documents by number from every kind of place, and a clear sentence where there are none."""

import json

import pytest

from jaxsae.data.corpora import Corpus, as_corpus, names, open_corpus
from jaxsae.errors import ConfigError, DataError

TEXTS = ["one.\n\ntwo", "drei, vier\nfünf", "六"]


def test_text_files_are_documents(tmp_path):
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "empty.txt").write_text("")
    assert list(open_corpus(str(tmp_path))) == TEXTS
    assert list(open_corpus(str(tmp_path / "[01].txt"))) == TEXTS[:2]
    assert list(open_corpus(str(tmp_path / "1.txt"))) == TEXTS[1:2]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("file", ["a\nb\n\n c\n \nd"]), ("line", ["a", "b", " c", "d"]), ("blank_line", ["a\nb", " c", "d"])],
)
def test_documents_inside_a_text_file(tmp_path, rule, expected):
    (tmp_path / "x.txt").write_text("a\nb\n\n c\n \nd")
    assert list(open_corpus(str(tmp_path / "x.txt"), documents=rule)) == expected


def test_json_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"body": t, "id": 1}) for t in TEXTS) + "\n\n")
    corpus = open_corpus(str(path), field="body")
    assert [corpus[i] for i in (2, 0, 1)] == [TEXTS[2], TEXTS[0], TEXTS[1]]
    assert corpus[1:] == TEXTS[1:]
    with pytest.raises(DataError, match="document 0 has no text under 'text'"):
        open_corpus(str(path))


def test_a_broken_json_line_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')
    corpus = open_corpus(str(path))
    with pytest.raises(DataError, match=r"x\.jsonl, document 1 is not JSON"):
        corpus[1]


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name, texts in (("a", TEXTS), ("b", ["x"] * 5)):
        parquet.write_table(
            arrow.table({"text": texts, "n": range(len(texts))}), tmp_path / f"{name}.parquet", row_group_size=2
        )
    corpus = open_corpus(str(tmp_path / "*.parquet"))
    assert list(corpus) == TEXTS + ["x"] * 5
    with pytest.raises(DataError, match="no column 'txt'; did you mean 'text'"):
        open_corpus(str(tmp_path / "a.parquet"), field="txt")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a readable parquet file"):
        open_corpus(str(tmp_path / "c.parquet"))


def test_datasets_of_a_hub(monkeypatch):
    import sys
    import types

    class Data(list):
        column_names = ("text",)

    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda path, config, split: Data({"text": f"{path} {config} {split} {i}"} for i in range(3))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert open_corpus("hf://datasets/owner/name:en", split="test")[2] == "owner/name en test 2"
    with pytest.raises(DataError, match="no column 'body'"):
        open_corpus("hf://datasets/owner/name", field="body")

    def unreachable(*_, **__):
        raise ConnectionError("no route\nto host")

    fake.load_dataset = unreachable
    with pytest.raises(DataError, match="'owner/name' cannot be had: no route to host; check the name and the network"):
        open_corpus("hf://datasets/owner/name")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="need the package datasets"):
        open_corpus("hf://datasets/owner/name")


def test_the_digest_follows_the_content(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("abc")
    first = open_corpus(str(path)).identity
    assert open_corpus(str(path)).identity == first
    path.write_text("abd")
    assert open_corpus(str(path)).identity != first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wikki", "no such file, and no corpus has that name; did you mean 'wiki'"),
        ("nowhere/*.txt", "no such file"),
        ("{folder}", r"no \.txt or \.md file is below it"),
    ],
)
def test_nothing_there(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        open_corpus(name.format(folder=tmp_path))


@pytest.mark.parametrize("content", ["", "  \n \n"])
def test_an_empty_corpus(tmp_path, content):
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(DataError, match="holds no document"):
        open_corpus(str(tmp_path / "x.txt"), documents="line")
    with pytest.raises(DataError, match="holds no document"):
        as_corpus([])


def test_other_encodings_are_named(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"x\.txt is not text in UTF-8 \(byte 3\)"):
        open_corpus(str(tmp_path / "x.txt"))[0]


def test_unknown_kinds(tmp_path):
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(ConfigError, match=r"of no known kind; expected \.txt"):
        open_corpus(str(tmp_path / "x.csv"))
    assert list(open_corpus(str(tmp_path / "x.csv"), data_format="txt")) == ["a"]
    (tmp_path / "x.jsonl").write_text('{"text": "a"}')
    with pytest.raises(ConfigError, match="mixes"):
        open_corpus(str(tmp_path / "x.*"), data_format="")


def test_texts_in_memory():
    corpus = as_corpus(TEXTS)
    assert list(corpus) == TEXTS
    assert as_corpus(corpus) is corpus
    assert isinstance(corpus, Corpus)
    with pytest.raises(IndexError):
        corpus[3]


@pytest.mark.real
@pytest.mark.parametrize(("name", "count"), [("wiki", 10033), ("news", 3824)])
def test_named(name, count):
    assert name in names()
    corpus = open_corpus(name)
    assert len(corpus) == count
    assert sum(len(corpus[i]) for i in range(0, count, 100)) > 10_000
