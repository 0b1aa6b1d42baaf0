"""Documents to windows of tokens: how text is cut, joined and marked before the host runs on it.

The tokens of training documents and of held-out documents never share a window, so a training row has not seen
held-out text, and held-out windows can be run again as they were.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxsae.data.manifest import SPLITS
from jaxsae.data.shuffle import heldout, permutation
from jaxsae.errors import ConfigError, DataError

Packing = Literal["packed", "separate"]
Bos = Literal["none", "document", "window"]
PADDING = -1


@dataclasses.dataclass(frozen=True)
class TextPolicy:
    """How documents become windows.

    Attributes:
        context_size: tokens per window, T.
        packing: "packed" joins documents and cuts the result, so that every window is full; "separate" begins each
            document in a new window and pads its last one.
        bos: where the beginning-of-sequence token goes: nowhere, before each "document", or before each "window".
        eos: whether the end-of-text token follows each document.
        chat_template: None, or text in which `{text}` stands for the document; the names of special tokens in it are
            read as those tokens (in the document itself they are ordinary characters).
    """

    context_size: int = 128
    packing: Packing = "packed"
    bos: Bos = "none"
    eos: bool = True
    chat_template: str | None = None

    def check(self, tokenizer: Any) -> None:
        """Raises ConfigError for a policy that this tokenizer cannot follow."""
        if self.context_size < 2:
            raise ConfigError(f"context_size = {self.context_size} is too short; expected at least 2 tokens")
        if self.bos != "none" and tokenizer.bos_id is None:
            raise ConfigError(f"bos = {self.bos!r}, but this host's tokenizer has no BOS token; use 'none'")
        if self.chat_template is not None and self.chat_template.count("{text}") != 1:
            raise ConfigError("chat_template must hold {text} exactly once: the place of the document")

    def encode(self, tokenizer: Any, text: str) -> list[int]:
        """The tokens of one document, with what the policy puts around it; [] for a document without tokens."""
        ids = list(tokenizer.encode(text))
        if not ids:
            return []
        if self.chat_template is not None:
            before, after = self.chat_template.split("{text}")
            ids = [*tokenizer.encode(before, special=True), *ids, *tokenizer.encode(after, special=True)]
        if self.bos == "document":
            ids = [tokenizer.bos_id, *ids]
        return [*ids, tokenizer.eos_id] if self.eos else ids


class Window(NamedTuple):
    """One input of the host: `tokens` [T], `doc` [T] (-1: padding), `position` [T] in the document, and the split."""

    tokens: np.ndarray
    doc: np.ndarray
    position: np.ndarray
    split: str


class WindowStream(Iterator[Window]):
    """The windows of a corpus in a fixed order, from any point on.

    Args:
        corpus: documents.
        tokenizer: of the host.
        policy: how they are cut.
        seed: of the order and the split.
        heldout_fraction: share of the documents kept away from training.
        shuffle: whether documents come in random order.
        part, parts: which share of the documents this stream is over.
        endless: begin again (in another order) at the end of the corpus; no held-out windows then.
        state: where to go on: what `state()` returned.
    """

    def __init__(
        self,
        corpus: Sequence[str],
        tokenizer: Any,
        policy: TextPolicy,
        *,
        seed: int = 0,
        heldout_fraction: float = 0.0,
        shuffle: bool = True,
        part: int = 0,
        parts: int = 1,
        endless: bool = False,
        state: dict[str, Any] | None = None,
    ):
        policy.check(tokenizer)
        self._corpus, self._tokenizer, self._policy = corpus, tokenizer, policy
        self._seed, self._shuffle, self._endless = seed, shuffle, endless
        self._part, self._parts = part, parts
        self._heldout = heldout(len(corpus), heldout_fraction, seed)
        self._order_of: tuple[int, np.ndarray] | None = None
        self._ready: list[Window] = []
        self._blank = 0  # documents without a token, one after another
        self._restore(state or {"next": 0, "skip": 0, "packers": dict.fromkeys(SPLITS, _Packer.EMPTY)})

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as plain data: at the document whose windows are being given out."""
        return {**self._before, "skip": self._given}

    def _restore(self, state: dict[str, Any]) -> None:
        self._next = state["next"]
        self._packers = {s: _Packer(self._policy, self._tokenizer, p) for s, p in state["packers"].items()}
        self._note()
        for _ in range(state["skip"]):
            next(self)

    def _note(self) -> None:
        self._before = {"next": self._next, "packers": {s: p.state() for s, p in self._packers.items()}}
        self._given = 0

    def __next__(self) -> Window:
        while not self._ready:
            if self._next == self._stop:
                raise StopIteration
            self._note()
            self._ready = self._advance()[::-1]
        self._given += 1
        return self._ready.pop()

    @property
    def _stop(self) -> float:
        """One past the last document comes the flush of what is left over."""
        return float("inf") if self._endless else len(self._order(0)) + 1

    def _order(self, epoch: int) -> np.ndarray:
        if self._order_of is None or self._order_of[0] != epoch:
            count = len(self._corpus)
            order = permutation(count, self._seed, "documents", epoch) if self._shuffle else np.arange(count)
            self._order_of = epoch, order[self._part :: self._parts]
        return self._order_of[1]

    def _advance(self) -> list[Window]:
        """The windows that the next document completes."""
        length = len(self._order(0))
        epoch, index = divmod(self._next, length) if self._endless else (0, self._next)
        self._next += 1
        if not self._endless and index == length:
            return [w for s, p in self._packers.items() for w in p.flush(s)]
        doc = int(self._order(epoch)[index])
        split = "heldout" if self._heldout[doc] and not self._endless else "train"
        ids = self._policy.encode(self._tokenizer, self._corpus[doc])
        self._blank = 0 if ids else self._blank + 1
        if self._endless and self._blank > length:
            raise DataError(f"there is no token in any of the {length} documents; expected text")
        return self._packers[split].add(ids, doc, split)


class _Packer:
    """Cuts the tokens of one split into windows; holds what does not fill one yet."""

    EMPTY: dict[str, Any] = {"ids": [], "docs": [], "doc": PADDING, "count": 0}

    def __init__(self, policy: TextPolicy, tokenizer: Any, state: dict[str, Any]):
        self._policy, self._tokenizer = policy, tokenizer
        self._body = policy.context_size - (policy.bos == "window")
        self._ids, self._docs = np.asarray(state["ids"], np.int32), np.asarray(state["docs"], np.int32)
        self._doc, self._count = state["doc"], state["count"]

    def state(self) -> dict[str, Any]:
        return {"ids": self._ids.tolist(), "docs": self._docs.tolist(), "doc": self._doc, "count": self._count}

    def add(self, ids: Sequence[int], doc: int, split: str) -> list[Window]:
        self._ids = np.concatenate([self._ids, np.asarray(ids, np.int32)])
        self._docs = np.concatenate([self._docs, np.full(len(ids), doc, np.int32)])
        out = [self._cut(split) for _ in range(len(self._ids) // self._body)]
        return out + self.flush(split) if self._policy.packing == "separate" else out

    def flush(self, split: str) -> list[Window]:
        """What is left, padded to a window."""
        if not len(self._ids):
            return []
        missing = self._body - len(self._ids)
        self._ids = np.concatenate([self._ids, np.full(missing, self._tokenizer.eos_id, np.int32)])
        self._docs = np.concatenate([self._docs, np.full(missing, PADDING, np.int32)])
        return [self._cut(split)]

    def _cut(self, split: str) -> Window:
        tokens, docs = self._ids[: self._body], self._docs[: self._body]
        self._ids, self._docs = self._ids[self._body :], self._docs[self._body :]
        if self._policy.bos == "window":
            tokens = np.concatenate([[np.int32(self._tokenizer.bos_id)], tokens])
            docs = np.concatenate([docs[:1], docs])
        return Window(tokens, docs, self._positions(docs), split)

    def _positions(self, docs: np.ndarray) -> np.ndarray:
        """Index of each token among its document's tokens as run, counted on from the window before."""
        starts = np.flatnonzero(np.diff(docs, prepend=PADDING - 1))
        lengths = np.diff(np.append(starts, len(docs)))
        position = np.arange(len(docs)) - np.repeat(starts, lengths)
        if docs[0] == self._doc:
            position[: lengths[0]] += self._count
        self._doc, self._count = int(docs[-1]), int(position[-1]) + 1
        return position.astype(np.int32)
