"""GGUF files of the Llama family: weights of any quantisation that the `gguf` package can expand, and the tokenizer."""

import pathlib
from typing import Any

import numpy as np

from jaxsae.errors import HostError
from jaxsae.hosts import gguf_header
from jaxsae.hosts.gguf_header import Gguf
from jaxsae.hosts.host import Host
from jaxsae.hosts.llama import Llama
from jaxsae.hosts.placement import MeshFor, mesh_of, placements
from jaxsae.hosts.tokenizer import END_OF_TEXT, Tokenizer, byte_level
from jaxsae.hosts.weights import Stack, digest_of

_WHOLE = {"token_embd.weight": "embed", "output_norm.weight": "ln_final", "output.weight": "unembed"}
_BLOCK = {
    "attn_norm.weight": "ln1",
    "attn_q.weight": "W_Q",
    "attn_k.weight": "W_K",
    "attn_v.weight": "W_V",
    "attn_output.weight": "W_O",
    "attn_q.bias": "b_Q",
    "attn_k.bias": "b_K",
    "attn_v.bias": "b_V",
    "attn_output.bias": "b_O",
    "ffn_norm.weight": "ln2",
    "ffn_gate.weight": "W_gate",
    "ffn_up.weight": "W_in",
    "ffn_down.weight": "W_out",
}
#: Layout of rotated pairs by architecture: llama's writers permute the rows of Q and K, the others do not.
_LAYOUT = {"llama": "interleaved", "qwen2": "half"}
_ROPE_DIVISORS = "rope_freqs.weight"
_ROWS_AT_ONCE = 4096
_NORMAL, _CONTROL, _USER = 1, 3, 4


def load_gguf(path: pathlib.Path, dtype: str = "float32", name: str | None = None, mesh: MeshFor = None) -> Host:
    """The host in a GGUF file.

    Args:
        path: the file.
        dtype: "float32" or "bfloat16"; quantised weights are expanded to it.
        name: what to call it; default the file's name.
        mesh: the devices that its weights are spread over, or a function model -> mesh; None for the default device.

    Raises:
        HostError: not a readable GGUF file, another architecture, or a quantisation that cannot be expanded.
    """
    file = gguf_header.read(path)
    try:
        model = _model(file)
    except (ArithmeticError, TypeError, ValueError) as e:
        raise HostError(f"{path} holds settings that describe no model ({e}); it is damaged or not a decoder") from e
    mesh, stack = mesh_of(mesh, model), Stack(model, dtype, path)
    for tensor in file.tensors:
        if tensor != _ROPE_DIVISORS:
            _put(stack, file, tensor)
    params = stack.finish(None if mesh is None else placements(model, mesh))
    return Host(name or path.stem, model, params, _tokenizer(file), digest_of([path]))


def _model(file: Gguf) -> Llama:
    get, path = file.settings.get, file.path
    architecture = get("general.architecture")
    if architecture not in _LAYOUT:
        raise HostError(
            f"{path} holds a model of type {architecture!r}; jaxsae runs {' and '.join(_LAYOUT)} GGUF files"
        )
    if get(f"{architecture}.expert_count") or get("split.count", 1) > 1:
        raise HostError(f"{path} is a mixture of experts or one part of a split file; give one whole dense model")

    def need(key: str) -> Any:
        if (value := get(f"{architecture}.{key}")) is None:
            raise HostError(f"{path} lacks the setting {architecture}.{key}; expected a complete model")
        return value

    heads, width = need("attention.head_count"), need("embedding_length")
    d_head = get(f"{architecture}.attention.key_length", width // heads)
    if get(f"{architecture}.rope.dimension_count", d_head) != d_head:
        raise HostError(f"{path} rotates only a part of each head, which jaxsae does not do")
    bias = "".join(
        c for c, t in zip("QKVO", ("q", "k", "v", "output"), strict=True) if f"blk.0.attn_{t}.bias" in file.tensors
    )
    return Llama(
        n_layers=need("block_count"),
        d_model=width,
        n_heads=heads,
        n_kv_heads=get(f"{architecture}.attention.head_count_kv", heads),
        d_head=d_head,
        d_mlp=need("feed_forward_length"),
        vocab_size=_tensor(file, "token_embd.weight").shape[0],
        context_length=need("context_length"),
        rope_base=get(f"{architecture}.rope.freq_base", 10000.0),
        rope_layout=_LAYOUT[architecture],  # type: ignore[arg-type]
        rope_divisors=_rope_divisors(file, architecture, d_head),
        norm_eps=need("attention.layer_norm_rms_epsilon"),
        tied="output.weight" not in file.tensors,
        attention_bias=bias,
    )


def _tensor(file: Gguf, name: str) -> gguf_header.Tensor:
    if name not in file.tensors:
        raise HostError(f"{file.path} lacks the tensor {name!r}; expected a complete model")
    return file.tensors[name]


def _rope_divisors(file: Gguf, architecture: str, d_head: int) -> tuple[float, ...]:
    scaling = file.settings.get(f"{architecture}.rope.scaling.type", "none")
    if scaling == "linear":
        return (float(file.settings.get(f"{architecture}.rope.scaling.factor", 1.0)),) * (d_head // 2)
    if scaling != "none":
        raise HostError(f"{file.path} scales its rotations by {scaling!r}; jaxsae knows 'none', 'linear' and llama3's")
    if _ROPE_DIVISORS not in file.tensors:
        return ()
    return tuple(float(x) for x in _expand(file, _ROPE_DIVISORS, 0, 1).ravel())


def _put(stack: Stack, file: Gguf, name: str) -> None:
    shape = file.tensors[name].shape
    place = stack.place(*_place(file.path, name), shape)
    if len(shape) == 1:
        place[:] = _expand(file, name, 0, 1)[0]
        return
    for start in range(0, shape[0], _ROWS_AT_ONCE):  # a large vocabulary is never expanded twice over
        rows = slice(start, min(start + _ROWS_AT_ONCE, shape[0]))
        place[rows] = _expand(file, name, rows.start, rows.stop)


def _place(path: pathlib.Path, name: str) -> tuple[str, int | None]:
    """Leaf of the parameters and block number of a tensor."""
    if name in _WHOLE:
        return _WHOLE[name], None
    parts = name.split(".", 2)
    if len(parts) != 3 or parts[0] != "blk" or not parts[1].isdigit() or parts[2] not in _BLOCK:
        raise HostError(f"{path} holds a tensor {name!r} that this family of models does not have")
    return _BLOCK[parts[2]], int(parts[1])


def _expand(file: Gguf, name: str, start: int, stop: int) -> np.ndarray:
    """Rows of a tensor in float32."""
    import gguf

    kind = gguf.GGMLQuantizationType(file.tensors[name].kind)
    try:
        with np.errstate(all="ignore"):
            return gguf.quants.dequantize(file.rows(name)[start:stop], kind)
    except NotImplementedError as e:
        raise HostError(f"{file.path}: tensor {name!r} is stored as {kind.name}, which cannot be expanded here") from e


def _tokenizer(file: Gguf) -> Tokenizer:
    get = file.settings.get
    kind, tokens, merges = (get(f"tokenizer.ggml.{key}") for key in ("model", "tokens", "merges"))
    if kind != "gpt2" or not tokens or merges is None:
        raise HostError(
            f"{file.path} has a tokenizer of type {kind!r}; jaxsae reads byte-level ones ('gpt2') from GGUF: load the "
            "Hugging Face folder of the model instead"
        )
    kinds = get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    special = [i for i, k in enumerate(kinds) if k in (_CONTROL, _USER)]
    pairs, split = [tuple(m.split(" ", 1)) for m in merges], get("tokenizer.ggml.pre", "default")
    inner = byte_level(tokens, pairs, special, split)
    end = next((tokens.index(t) for t in END_OF_TEXT if t in tokens), get("tokenizer.ggml.eos_token_id"))
    if end is None:
        raise HostError(f"{file.path} names no end-of-text token; load the Hugging Face folder of the model instead")
    # A file that does not say whether texts begin with a token means no, except in the family of Llama 3.
    begins = get("tokenizer.ggml.add_bos_token", split == "llama-bpe")
    begin = get("tokenizer.ggml.bos_token_id") if begins else None
    return Tokenizer(inner, end, begin, special)
