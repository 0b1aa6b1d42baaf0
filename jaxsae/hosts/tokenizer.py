"""Text to token ids and back, on top of the `tokenizers` library."""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jaxsae.errors import HostError

if TYPE_CHECKING:
    import tokenizers

#: Separate documents in the pre-training text of many models; preferred over a chat model's end-of-turn token.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: How text is cut before byte pairs are merged, by the name a GGUF file gives it; None is GPT-2's own rule.
_SPLITS: Mapping[str, str | None] = {
    "gpt-2": None,
    "default": None,
    "smollm": None,
    "llama-bpe": _LLAMA3,
    "qwen2": _LLAMA3.replace("{1,3}", ""),
}


class Tokenizer:
    """Text to ids and back.

    Attributes:
        eos_id: the token between documents (one of `END_OF_TEXT` where there is one, else the file's own end token).
        bos_id: the token the model expects at the start of every text, or None where it expects none.
        special_ids: tokens that stand for no text.

    Example:
        >>> from jaxsae.testing.tiny_host import tiny_host
        >>> tokenizer = tiny_host().tokenizer
        >>> tokenizer.token_strings(tokenizer.encode("hi"))
        ['h', 'i']
    """

    def __init__(
        self, inner: "tokenizers.Tokenizer", eos_id: int, bos_id: int | None = None, special_ids: Iterable[int] = ()
    ):
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True
        self._inner = inner
        self.eos_id = eos_id
        self.bos_id = bos_id
        self.special_ids = frozenset(special_ids)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._inner.get_vocab_size()

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids.  No token is added at either end.

        Args:
            text: any text.
            special: True reads the name of a special token in the text, such as `<|im_start|>`, as that token (for
                chat templates); False reads it as ordinary characters, as is right for documents.
        """
        return (self._reading_special if special else self._inner).encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, in parallel."""
        return [e.ids for e in self._inner.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text, special tokens included by name."""
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=False)

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        r"""Each token as text: the pieces join to the text, and bytes that are no whole character show as `\xe2`."""
        return [self._string(int(i)) for i in ids]

    @cached_property
    def _reading_special(self) -> "tokenizers.Tokenizer":
        import tokenizers

        copy = tokenizers.Tokenizer.from_str(self._inner.to_str())
        copy.encode_special_tokens = False
        return copy

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """Byte-level alphabet: printable stand-in -> byte; empty for vocabularies of another kind."""
        return _byte_alphabet() if '"ByteLevel"' in json.dumps(json.loads(self._inner.to_str())["decoder"]) else {}

    def _string(self, token: int) -> str:
        piece = self._inner.id_to_token(token)
        if piece is None:
            raise HostError(f"token {token} is not in the vocabulary of {self.vocab_size} tokens")
        if token in self.special_ids:
            return piece
        if self._byte_of and all(c in self._byte_of for c in piece):
            return bytes(self._byte_of[c] for c in piece).decode("utf-8", errors="backslashreplace")
        return piece.replace("\u2581", " ")


def byte_level(
    tokens: Sequence[str],
    merges: Iterable[tuple[str, str]],
    special_ids: Iterable[int],
    split: str = "gpt-2",
) -> "tokenizers.Tokenizer":
    """A byte-level BPE tokenizer from its parts, as GGUF files hold them.

    Args:
        tokens: the vocabulary in order, bytes written in GPT-2's printable alphabet.
        merges: pairs in order of priority.
        special_ids: tokens that no text produces.
        split: how text is cut before merging, by its name in GGUF files.

    Raises:
        HostError: an unknown `split`.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    if split not in _SPLITS:
        raise HostError(f"tokenizer rule {split!r} is not known; expected one of {', '.join(_SPLITS)}")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    try:
        model = models.BPE(vocab=vocabulary, merges=list(merges), ignore_merges=split == "llama-bpe")
    except Exception as e:  # the library raises bare exceptions
        raise HostError(f"the tokenizer's vocabulary and merges do not fit together ({e}); the file is damaged") from e
    inner = tokenizers.Tokenizer(model)
    regex = _SPLITS[split]
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)]
    if split == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    if regex is not None:
        steps.insert(0, pre_tokenizers.Split(tokenizers.Regex(regex), behavior="isolated"))
    if split == "qwen2":
        inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Sequence(steps)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([tokenizers.AddedToken(tokens[i], special=True, normalized=False) for i in special_ids])
    return inner


def from_folder(folder: pathlib.Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, from `tokenizer.json` and `tokenizer_config.json`.

    Raises:
        HostError: the file is missing or damaged, or no end token can be found.
    """
    import tokenizers

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise HostError(f"{folder} has no tokenizer.json; expected the fast tokenizer's file beside the weights")
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises bare exceptions
        raise HostError(f"{path} is not a readable tokenizer file ({e})") from e
    special = {i for i, token in inner.get_added_tokens_decoder().items() if token.special}
    start = inner.encode("", add_special_tokens=True).ids
    return Tokenizer(inner, _end_token(folder, inner), start[0] if start else None, special)


def _end_token(folder: pathlib.Path, inner: "tokenizers.Tokenizer") -> int:
    named: list[Any] = [*END_OF_TEXT]
    for file in ("tokenizer_config.json", "config.json"):
        data = read_json(folder / file) if (folder / file).is_file() else {}
        token, ids = data.get("eos_token"), data.get("eos_token_id")
        named += [token.get("content") if isinstance(token, dict) else token]
        named += ids if isinstance(ids, list) else [ids]
    for name in named:
        found = inner.token_to_id(name) if isinstance(name, str) else name
        if isinstance(found, int):
            return found
    raise HostError(f"{folder} names no end-of-text token; expected eos_token in tokenizer_config.json")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder.  Raises HostError if it is missing or damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise HostError(f"{path} cannot be read as JSON ({e}); expected a complete model folder") from e
    if not isinstance(data, dict):
        raise HostError(f"{path} holds a {type(data).__name__}, expected a JSON object")
    return data


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 stands for itself, the rest from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}
