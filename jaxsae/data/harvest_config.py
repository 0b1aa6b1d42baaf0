"""What to harvest, and how much that will be."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from jaxsae import hosts
from jaxsae.config import register
from jaxsae.data.activations import DropPolicy, Runner, batched
from jaxsae.data.corpora import Corpus, DocumentRule, as_corpus
from jaxsae.data.manifest import Dtype, Manifest
from jaxsae.data.windows import Bos, Packing, TextPolicy, WindowStream
from jaxsae.errors import ConfigError
from jaxsae.hosts import Host, HostMesh, Llama
from jaxsae.parallel import Chosen


@register("harvest")
@dataclasses.dataclass(frozen=True)
class HarvestConfig:
    """What to harvest and how.

    Attributes:
        host: model: a name, a .gguf file, a Hugging Face folder or hub name.
        sites: where activations are read; several sites are read in one pass and their rows belong together.
        corpus: text: a named corpus ("wiki", "news"), files (.txt, .jsonl, .parquet; a folder or a pattern), or
            hf://datasets/owner/name.
        text_field: field or column with the text, for .jsonl, .parquet and datasets.
        documents: what one document of a text file is.
        corpus_split: which split of a Hugging Face dataset.
        tokens: how many tokens to run, rounded up to whole windows; none takes the whole corpus.
        context_size: tokens per window.
        batch_size: windows per forward pass.
        packing: "packed" joins documents so that all windows are full; "separate" begins each document in a new window.
        bos: where the beginning-of-sequence token goes.
        eos: whether the end-of-text token follows each document.
        chat_template: none, or text with {text} in place of the document.
        drop_position_0: leave out the first token of each window (attention sinks).
        drop_special_tokens: leave out tokens that stand for no text.
        outlier_factor: leave out rows whose norm is above this factor times the median norm of their block; none keeps
            them.
        shuffle_documents: take documents in random order.
        heldout_fraction: share of the documents whose rows are kept away from training.
        seed: of the document order, the split and the row shuffle.
        dtype: how rows are stored.
        host_dtype: of the host's weights and activations; norms, softmax and statistics are float32 in any case.
        mesh: how the host is spread over the devices of each process.
        shuffle_tokens: tokens whose rows are shuffled together; what a kill loses at most.
        compression: of the stored rows.
        part: which share of the documents this process harvests.
        parts: into how many shares they are divided; the processes of one run share them out by themselves.

    Example:
        >>> HarvestConfig(corpus="news", tokens=200_000).context_size
        128
    """

    host: str = "smollm2-135m"
    sites: tuple[str, ...] = ("blocks.9.hook_resid_post",)
    corpus: str = "wiki"
    text_field: str = "text"
    documents: DocumentRule = "file"
    corpus_split: str = "train"
    tokens: int | None = None
    context_size: int = 128
    batch_size: int = 16
    packing: Packing = "packed"
    bos: Bos = "none"
    eos: bool = True
    chat_template: str | None = None
    drop_position_0: bool = True
    drop_special_tokens: bool = True
    outlier_factor: float | None = 10.0
    shuffle_documents: bool = True
    heldout_fraction: float = 0.05
    seed: int = 0
    dtype: Dtype = "bfloat16"
    host_dtype: Literal["float32", "bfloat16"] = "float32"
    mesh: HostMesh = dataclasses.field(default_factory=HostMesh)
    shuffle_tokens: int = 32768
    compression: Literal["none", "zstd"] = "none"
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        if not self.sites or len(set(self.sites)) != len(self.sites):
            raise ConfigError(f"sites = {self.sites}: expected at least one, and each only once")
        for name in ("batch_size", "shuffle_tokens", "parts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}; expected 1 or more")
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"tokens = {self.tokens}; expected 1 or more, or none for the whole corpus")
        if not 0 <= self.heldout_fraction < 1:
            raise ConfigError(f"heldout_fraction = {self.heldout_fraction}; expected 0 or more and less than 1")
        if self.seed < 0:
            raise ConfigError(f"seed = {self.seed}; expected 0 or more")
        if not 0 <= self.part < self.parts:
            raise ConfigError(f"part = {self.part}; expected 0 to parts - 1 = {self.parts - 1}")
        self.drop.check()

    @property
    def text(self) -> TextPolicy:
        """How documents become windows."""
        return TextPolicy(**{f.name: getattr(self, f.name) for f in dataclasses.fields(TextPolicy)})

    @property
    def drop(self) -> DropPolicy:
        """Which rows are left out."""
        return DropPolicy(self.drop_position_0, self.drop_special_tokens, self.outlier_factor)

    @property
    def window_limit(self) -> int | None:
        """Windows that this part runs, or None for all there are."""
        if self.tokens is None:
            return None
        windows = -(-self.tokens // self.context_size)
        return windows // self.parts + (self.part < windows % self.parts)

    @property
    def batches_per_block(self) -> int:
        """Forward passes whose rows are shuffled together."""
        return max(1, self.shuffle_tokens // (self.batch_size * self.context_size))

    def open_corpus(self) -> Corpus:
        """The documents."""
        return as_corpus(self.corpus, field=self.text_field, documents=self.documents, split=self.corpus_split)

    def load_host(self, devices: Sequence[Any] | None = None) -> Host:
        """The host model; where its weights have to be cut they are spread as they are read."""

        def mesh(model: Llama) -> Mesh | None:
            chosen = self.choose_mesh(model, devices).mesh
            return chosen if chosen.shape["latent"] > 1 else None

        return hosts.load(self.host, self.host_dtype, mesh)

    def choose_mesh(self, model: Llama, devices: Sequence[Any] | None = None) -> Chosen:
        """The mesh that a host runs on (see `jaxsae.hosts.choose_mesh`)."""
        return hosts.choose_mesh(self.mesh, model, self.host_dtype, self.batch_size, devices)

    def manifest(self, host: Any, corpus: Corpus) -> Manifest:
        """What a cache made with this configuration is.

        Raises:
            HostError: an unknown site.
            ConfigError: a policy that the host cannot follow.
        """
        widths = tuple((site, host.model.width(site)) for site in self.sites)
        self.text.check(host.tokenizer)
        longest = getattr(host.model, "context_length", None)
        if longest is not None and self.context_size > longest:
            raise ConfigError(f"context_size = {self.context_size}, but this host takes at most {longest} tokens")
        text = dataclasses.asdict(self.text) | {f"drop_{k}": v for k, v in dataclasses.asdict(self.drop).items()}
        text |= {"shuffle_documents": self.shuffle_documents, "block_batches": self.batches_per_block}
        return Manifest(
            sites=widths,
            dtype=self.dtype,
            seed=self.seed,
            heldout_fraction=self.heldout_fraction,
            host=host.identity,
            text=text | {"batch_size": self.batch_size},
            corpus=corpus.identity,
            parts=self.parts,
            compression=self.compression,
        )

    def estimate(self, host: Any, corpus: Corpus, measure: bool = False) -> "Estimate":
        """Rows, disk and time of this harvest, before it starts.

        Args:
            host: the host.
            corpus: the documents; up to 64 of them are tokenised where `tokens` does not say how many there are.
            measure: run two batches to learn the host's speed (the second one counts).
        """
        windows = self.window_limit
        sample = [int(i) for i in np.linspace(0, len(corpus) - 1, min(64, len(corpus)))]
        found = float(np.mean([len(self.text.encode(host.tokenizer, corpus[i])) for i in sample]))
        available = max(1, round(found * len(corpus) / self.parts / self.context_size))
        windows = available if windows is None else min(windows, available)
        rows = windows * (self.context_size - self.drop_position_0)
        rate = self._tokens_per_second(host) if measure else None
        tokens = windows * self.context_size
        return Estimate(
            tokens, rows, rows * self.manifest(host, corpus).row_bytes, None if rate is None else tokens / rate
        )

    def _tokens_per_second(self, host: Any) -> float:
        runner = self.runner(host)
        stream = WindowStream([" a" * self.context_size] * self.batch_size, host.tokenizer, self.text)
        batch = next(batched(stream, self.batch_size))
        for _ in range(2):  # the first one compiles
            start = time.perf_counter()
            np.asarray(runner.start(batch)["norms"][self.sites[0]])
            seconds = time.perf_counter() - start
        return self.batch_size * self.context_size / seconds

    def runner(self, host: Any, devices: Sequence[Any] | None = None) -> Runner:
        """The host made ready for this configuration's windows."""
        dtype = "float32" if self.dtype == "int8" else self.dtype
        mesh = self.choose_mesh(host.model, devices).mesh
        return Runner(host, self.sites, self.batch_size, dtype, mesh if devices or mesh.size > 1 else None)

    def windows(self, host: Any, corpus: Sequence[str], **options: Any) -> WindowStream:
        """The windows of this part, from the start or from a state."""
        return WindowStream(
            corpus,
            host.tokenizer,
            self.text,
            seed=self.seed,
            heldout_fraction=self.heldout_fraction,
            shuffle=self.shuffle_documents,
            part=self.part,
            parts=self.parts,
            **options,
        )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Expected size of a harvest: tokens run, rows stored, bytes on the disk, seconds (None where not measured)."""

    tokens: int
    rows: int
    bytes: int
    seconds: float | None
