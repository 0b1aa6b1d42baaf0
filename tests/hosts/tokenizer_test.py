"""Text to ids and back."""

import json

import pytest

from jaxsae.errors import HostError
from jaxsae.hosts.tokenizer import byte_level, from_folder
from jaxsae.testing.tiny_host import byte_tokenizer

TEXTS = ["", "hello world", "  two  spaces\n\n\ttab", "café, naïve, 東京, 🙂", "<|endoftext|> is a name", "1234 5"]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_round_trip_and_one_byte_is_one_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.encode())
    assert tokenizer.encode_batch([text, "x"]) == [ids, tokenizer.encode("x")]


def test_tokens_show_as_text_and_parts_of_characters_as_escapes(tokenizer):
    assert tokenizer.token_strings(tokenizer.encode("a b\n")) == ["a", " ", "b", "\n"]
    assert tokenizer.token_strings(tokenizer.encode("é")) == ["\\xc3", "\\xa9"]
    assert tokenizer.token_strings([0]) == ["<|endoftext|>"]
    with pytest.raises(HostError, match="257 tokens"):
        tokenizer.token_strings([257])


def test_the_name_of_a_special_token_in_a_text_is_text_unless_asked_for(tokenizer):
    text = "a<|endoftext|>b"
    assert 0 not in tokenizer.encode(text)
    assert tokenizer.encode(text, special=True) == [*tokenizer.encode("a"), 0, *tokenizer.encode("b")]
    assert tokenizer.encode(text) == tokenizer.encode(text)  # asking once does not change the tokenizer
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.special_ids) == (0, None, frozenset([0]))


def bpe(split, merges=()):
    from tokenizers import pre_tokenizers

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(m) for m in merges)]
    return byte_level(tokens, merges, [], split)


def test_merges_apply_in_order_of_priority():
    tokens = bpe("gpt-2", [("l", "o"), ("e", "l"), ("lo", "w")]).encode("low elow").tokens
    assert tokens == ["low", "Ġ", "e", "low"]


@pytest.mark.parametrize(
    ("split", "pieces"),
    [
        ("gpt-2", ["12345", "Ġ67"]),
        ("smollm", ["1", "2", "3", "4", "5", "Ġ", "6", "7"]),
        ("llama-bpe", ["123", "45", "Ġ", "67"]),
        ("qwen2", ["1", "2", "3", "4", "5", "Ġ", "6", "7"]),
    ],
)
def test_digits_are_cut_as_each_family_cuts_them(split, pieces):
    assert [piece for piece, _ in bpe(split).pre_tokenizer.pre_tokenize_str("12345 67")] == pieces


@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe", "qwen2"])
def test_contractions_and_newlines_are_cut_as_the_family_cuts_them(split):
    pieces = [piece for piece, _ in bpe(split).pre_tokenizer.pre_tokenize_str("I'LL go.\n\nno")]
    if split == "gpt-2":  # knows lower-case contractions only, and leaves the last newline to what follows
        assert pieces == ["I", "'", "LL", "Ġgo", ".", "Ċ", "Ċ", "no"]
    else:
        assert pieces == ["I", "'LL", "Ġgo", ".ĊĊ", "no"]


def test_an_unknown_rule_is_named():
    with pytest.raises(HostError, match="'klingon' is not known"):
        bpe("klingon")


def write_folder(folder, tokenizer, **config):
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_gives_the_same_ids_and_its_end_and_start_tokens(tmp_path, tokenizer):
    from tokenizers import processors

    inner = tokenizer._inner
    read = from_folder(write_folder(tmp_path, inner, eos_token={"content": "a"}))
    assert read.encode(TEXTS[3]) == tokenizer.encode(TEXTS[3])
    assert (read.eos_id, read.bos_id, read.special_ids) == (0, None, frozenset([0]))  # <|endoftext|> comes first

    plain = bpe("gpt-2")
    b = plain.token_to_id("b")
    plain.post_processor = processors.TemplateProcessing(single="b $A", special_tokens=[("b", b)])
    read = from_folder(write_folder(tmp_path, plain, eos_token={"content": "a"}))
    assert (read.eos_id, read.bos_id) == (plain.token_to_id("a"), b)
    assert read.encode("xy") == [plain.token_to_id("x"), plain.token_to_id("y")]  # nothing is added


def test_limits_and_padding_kept_in_the_file_do_not_apply(tmp_path):
    inner = bpe("gpt-2")
    inner.enable_truncation(2)
    inner.enable_padding(length=5)
    read = from_folder(write_folder(tmp_path, inner, eos_token="a"))
    assert len(read.encode("abcdef")) == 6
    assert [len(ids) for ids in read.encode_batch(["ab", "abcdef"])] == [2, 6]


def test_missing_and_damaged_files_are_one_sentence(tmp_path):
    with pytest.raises(HostError, match=r"has no tokenizer\.json"):
        from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(HostError, match="not a readable tokenizer file"):
        from_folder(tmp_path)
    with pytest.raises(HostError, match="end-of-text"):
        from_folder(write_folder(tmp_path, bpe("gpt-2")))
