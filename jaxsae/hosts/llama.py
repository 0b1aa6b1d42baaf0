"""The Llama family of decoders in plain JAX (Llama, SmolLM, Mistral, Qwen2 and their kin).

A block, with `norm(x) = gain * x / sqrt(mean(x^2) + eps)` (RMSNorm, Zhang and Sennrich, arXiv:1910.07467):

    x <- x + W_O attention(rotate(W_Q norm(x)), rotate(W_K norm(x)), W_V norm(x))
    x <- x + W_out (silu(W_gate norm(x)) * W_in norm(x))            SwiGLU, Shazeer, arXiv:2002.05202

with causal attention in which groups of heads share keys and values (Ainslie et al., arXiv:2305.13245), positions by
rotation (RoPE, Su et al., arXiv:2104.09864).  Touvron et al., arXiv:2302.13971, put it together.

Weights are stored input-first, [n_layers, in, out], so that a block computes `x @ W`.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsae.errors import ConfigError, HostError
from jaxsae.hosts import forward, sites
from jaxsae.hosts.forward import At, Edit, Run


@dataclasses.dataclass(frozen=True)
class Llama:
    """The shape of a decoder; hashable, so it may be a static argument.  Its arrays are always passed in.

    Attributes:
        n_layers: blocks.
        d_model: width of the residual stream.
        n_heads: query heads.
        n_kv_heads: key and value heads; divides n_heads.
        d_head: width of a head.
        d_mlp: width of the MLP.
        vocab_size: V.
        context_length: the longest window that `run` accepts.
        rope_base: base of the rotation frequencies.
        rope_layout: which components of a head turn together: "interleaved" (0 and 1, 2 and 3, ...; how GGUF files of
            this family are laid out) or "half" (i and i + d_head / 2; Hugging Face).
        rope_divisors: d_head / 2 numbers that divide the frequencies (a long-context scaling), or empty.
        norm_eps: inside the square root of a norm.
        tied: the unembedding is the embedding.
        attention_bias: letters of the projections that add a bias, such as "QKV".

    Example:
        >>> model = Llama(n_layers=2, d_model=8, n_heads=2, n_kv_heads=1, d_head=4, d_mlp=16, vocab_size=10)
        >>> model.width("blocks.1.hook_resid_post")
        8
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    vocab_size: int
    context_length: int = 2048
    rope_base: float = 10000.0
    rope_layout: Literal["interleaved", "half"] = "half"
    rope_divisors: tuple[float, ...] = ()
    norm_eps: float = 1e-5
    tied: bool = True
    attention_bias: str = ""

    def __post_init__(self) -> None:
        counts = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_mlp", "vocab_size", "context_length")
        for name in counts:
            value = getattr(self, name)
            if not isinstance(value, int) or value <= 0:
                raise ConfigError(f"a decoder's {name} must be a positive whole number, found {value!r}")
        if self.n_heads % self.n_kv_heads or self.d_head % 2:
            raise ConfigError(
                f"{self.n_heads} heads of width {self.d_head} cannot share {self.n_kv_heads} KV heads: expected a "
                "multiple of the KV heads, and an even width"
            )
        if self.rope_divisors and len(self.rope_divisors) != self.d_head // 2:
            raise ConfigError(f"expected {self.d_head // 2} rotation divisors, found {len(self.rope_divisors)}")

    # ------------------------------------------------------------------------------------------------- what it is
    def sites(self) -> tuple[str, ...]:
        """Names of all sites, in the order of the computation (see `jaxsae.hosts.sites`)."""
        return sites.names(self.n_layers)

    def width(self, site: str) -> int:
        """Width of the activation at a site.  Raises HostError for an unknown site."""
        return self.n_heads * self.d_head if sites.parse(site, self.n_layers).point == "z" else self.d_model

    def shapes(self) -> dict[str, Any]:
        """The shape of every leaf of the parameters, as a pytree of tuples."""
        d, m, q, kv = self.d_model, self.d_mlp, self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        block = {"ln1": (d,), "W_Q": (d, q), "W_K": (d, kv), "W_V": (d, kv), "W_O": (q, d)}
        block |= {"ln2": (d,), "W_gate": (d, m), "W_in": (d, m), "W_out": (m, d)}
        block |= {f"b_{letter}": block[f"W_{letter}"][1:] for letter in self.attention_bias}
        tree: dict[str, Any] = {"embed": (self.vocab_size, d), "ln_final": (d,)}
        if not self.tied:
            tree["unembed"] = (self.vocab_size, d)
        return tree | {"blocks": {name: (self.n_layers, *shape) for name, shape in block.items()}}

    def axes(self) -> dict[str, Any]:
        """What the axes of every leaf are, by letters (see `jaxsae.hosts.placement`), as a pytree like `shapes`."""
        block = {"ln1": "LD", "W_Q": "LDH", "W_K": "LDG", "W_V": "LDG", "W_O": "LHD"}
        block |= {"ln2": "LD", "W_gate": "LDM", "W_in": "LDM", "W_out": "LMD"}
        block |= {f"b_{letter}": "L" + block[f"W_{letter}"][2:] for letter in self.attention_bias}
        unembed = {} if self.tied else {"unembed": "VD"}
        return {"embed": "VD", "ln_final": "D", **unembed, "blocks": block}

    @property
    def n_params(self) -> int:
        """Number of parameters; a tied embedding counts once."""
        return sum(math.prod(s) for s in jax.tree.leaves(self.shapes(), is_leaf=lambda s: isinstance(s, tuple)))

    def describe(self) -> str:
        """One line for people."""
        return (
            f"Llama, {self.n_params / 1e6:.1f} M parameters: {self.n_layers} blocks, d_model {self.d_model}, "
            f"{self.n_heads} heads / {self.n_kv_heads} KV heads of {self.d_head}, MLP {self.d_mlp}, vocabulary "
            f"{self.vocab_size}, {'tied' if self.tied else 'untied'} embedding, context {self.context_length}"
        )

    # ------------------------------------------------------------------------------------------------- running it
    def run(
        self,
        params: Any,
        tokens: Array | None,
        *,
        taps: Iterable[str] = (),
        edits: Mapping[str, Edit] | None = None,
        logits: bool = True,
        resume: tuple[str, Array] | None = None,
    ) -> Run:
        """A forward pass that reads and replaces activations.  Pure; wrap it in `jax.jit`.

        Args:
            params: the host's parameters.
            tokens: [B, T] integers.  All windows are full, attention is causal, position 0 is the first token.  Not
                read (and may be None) where the run resumes.
            taps: sites to read.
            edits: functions activation [B, T, width] -> activation of the same shape, by site.  An edit comes before
                the tap of the same site, and gradients pass through it.
            logits: False stops after the last tapped site: later blocks and the unembedding are not computed (and
                edits there do not happen).
            resume: (residual site, its value [B, T, d_model]): begin there instead of at the tokens.  An edit or tap
                of that very site still applies.

        Returns:
            The logits [B, T, V] in float32, and the activations tapped, in the dtype of the parameters.  On TPUs and
            GPUs float32 products follow `jax.default_matmul_precision`.

        Raises:
            HostError: unknown site, a shape that does not fit, a site before the point of resumption.

        Example:
            >>> from jaxsae.testing.tiny_host import tiny_host
            >>> host = tiny_host()
            >>> site = "blocks.1.hook_resid_post"
            >>> tokens = jnp.asarray([host.tokenizer.encode("hello")])
            >>> read = jax.jit(lambda params, tokens: host.model.run(params, tokens, taps=[site], logits=False))
            >>> read(host.params, tokens).taps[site].shape
            (1, 5, 32)
        """
        if resume is None:
            self._check_tokens(tokens)
        else:
            resume = (resume[0], self._residual(params, resume[1]))
        return forward.run(self, params, tokens, taps=taps, edits=edits, logits=logits, resume=resume)

    def embed(self, params: Any, tokens: Array) -> Array:
        """[B, T] -> [B, T, d_model].  A token outside the vocabulary gives NaN, which spreads through its window."""
        return jnp.take(params["embed"], jnp.asarray(tokens), axis=0, mode="fill")

    def unembed(self, params: Any, x: Array) -> Array:
        """Logits of the final residual stream: `W_U norm(x)`, [..., d_model] -> [..., V] in float32."""
        return self._head(params, rms_norm(x, params["ln_final"], self.norm_eps))

    def unembed_direction(self, params: Any, directions: Array) -> Array:
        """How directions of the final residual stream move the logits: the logit lens, [N, d_model] -> [N, V].

        `W_U (gain * direction)` in float32: with the gain of the final norm, which is linear, and without its
        division by the stream's size, which scales all logits alike.
        """
        gain = params["ln_final"].astype(jnp.float32)
        return self._head(params, (directions * gain[None]).astype(params["ln_final"].dtype))

    def block(self, weights: Mapping[str, Array], x: Array, at: At, start: str = "resid_pre") -> Array:
        """One block; see `forward.Blocks`.  `weights` are its own, without the leading axis of layers."""
        if start == "resid_pre":
            z = at("z", self._attend(weights, rms_norm(x, weights["ln1"], self.norm_eps)))
            x = at("resid_mid", x + at("attn_out", _project(weights, "O", z)))
        h = at("mlp_in", rms_norm(x, weights["ln2"], self.norm_eps))
        return x + at("mlp_out", (jax.nn.silu(h @ weights["W_gate"]) * (h @ weights["W_in"])) @ weights["W_out"])

    # ------------------------------------------------------------------------------------------------- inside
    def _attend(self, weights: Mapping[str, Array], h: Array) -> Array:
        q, k, v = (
            _project(weights, letter, h).reshape(*h.shape[:2], heads, self.d_head)
            for letter, heads in (("Q", self.n_heads), ("K", self.n_kv_heads), ("V", self.n_kv_heads))
        )
        turn = self._rotation(h.shape[1])
        z = jax.nn.dot_product_attention(turn(q), turn(k), v, is_causal=True)
        return z.reshape(*h.shape[:2], -1)

    def _rotation(self, length: int):
        """A function that turns each head of [B, T, heads, d_head] by its position."""
        frequency = self.rope_base ** (-np.arange(0, self.d_head, 2) / self.d_head)
        if self.rope_divisors:
            frequency = frequency / np.asarray(self.rope_divisors)
        angle = np.arange(length)[:, None] * frequency[None]
        cos, sin = (np.asarray(f(angle), np.float32)[None, :, None] for f in (np.cos, np.sin))
        interleaved = self.rope_layout == "interleaved"

        def turn(x: Array) -> Array:
            pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], *((-1, 2) if interleaved else (2, -1)))
            axis = -1 if interleaved else -2
            a, b = jnp.moveaxis(pairs, axis, 0)
            return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis).reshape(x.shape).astype(x.dtype)

        return turn

    def _head(self, params: Any, x: Array) -> Array:
        matrix = params["embed" if self.tied else "unembed"]
        rows = x.reshape(-1, self.d_model)  # older XLA for CPUs sums bfloat16 products in float32 for matrices only
        logits = jnp.matmul(rows, matrix.T, preferred_element_type=jnp.float32)
        return logits.reshape(*x.shape[:-1], self.vocab_size)

    def _residual(self, params: Any, x: Array) -> Array:
        if jnp.ndim(x) != 3 or jnp.shape(x)[-1] != self.d_model:
            raise HostError(f"a residual stream has shape [B, T, {self.d_model}], found {list(jnp.shape(x))}")
        self._check_length(jnp.shape(x)[1])
        return jnp.asarray(x, params["embed"].dtype)

    def _check_tokens(self, tokens: Array | None) -> None:
        shape = jnp.shape(tokens) if tokens is not None else ()
        if tokens is None or len(shape) != 2 or not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
            found = "None" if tokens is None else f"{jnp.result_type(tokens)} of shape {list(shape)}"
            raise HostError(f"tokens must be integers of shape [B, T], found {found}")
        self._check_length(shape[1])

    def _check_length(self, length: int) -> None:
        if not 0 < length <= self.context_length:
            raise HostError(
                f"a window of {length} tokens does not fit: this model takes 1 to {self.context_length}; cut the text"
            )


def rms_norm(x: Array, gain: Array, eps: float) -> Array:
    """`gain * x / sqrt(mean(x^2) + eps)` over the last axis, computed in float32, in the dtype of x."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    gain = gain.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return (x32 * scale * gain).astype(x.dtype)


def _project(weights: Mapping[str, Array], letter: str, x: Array) -> Array:
    y = x @ weights[f"W_{letter}"]
    bias = weights.get(f"b_{letter}")
    return y if bias is None else y + bias[None, None]
