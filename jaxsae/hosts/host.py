"""A host: a model that is looked into, its weights, its tokenizer, and a proof of which one it is."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from jaxsae.hosts.llama import Llama
from jaxsae.hosts.tokenizer import Tokenizer

_NOT_COMPARED = ("name", "dtype")


@dataclasses.dataclass(frozen=True, eq=False)
class Host:
    """A model with its weights and its tokenizer.

    Attributes:
        name: what it was loaded as; for people.
        model: the static part, with `run`, `sites`, `width`, `unembed`.
        params: the arrays, to be passed to `model.run` as an argument (closed over, they would become constants of
            the compiled program).
        tokenizer: text to ids and back.
        digest: SHA-256 of the weights.

    Example:
        >>> from jaxsae.testing.tiny_host import tiny_host
        >>> host = tiny_host()
        >>> host.matches(host.identity)
        True
    """

    name: str
    model: Llama
    params: Any
    tokenizer: Tokenizer
    digest: str

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that say which host made some activations; kept with a cache and survives JSON."""
        facts = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self.model).items()}
        dtype = str(jax.tree.leaves(self.params)[0].dtype)
        return {"name": self.name, "digest": self.digest, "architecture": "llama", "dtype": dtype, **facts}

    def matches(self, identity: Mapping[str, Any]) -> bool:
        """Do activations of this identity come from this model: the same weights in the same architecture?

        The name and the dtype of the computation may differ.
        """
        ours = {k: v for k, v in self.identity.items() if k not in _NOT_COMPARED}
        return "digest" in identity and all(identity[k] == v for k, v in ours.items() if k in identity)
