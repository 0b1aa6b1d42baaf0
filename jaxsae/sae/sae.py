"""The trained object: an immutable dictionary that encodes and decodes.  Evaluations and uses take only this."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.codes import Codes
from jaxsae.sae.dictionaries import Free, decode_rows
from jaxsae.sae.encode import PreSelect
from jaxsae.sae.encoders import Affine
from jaxsae.sae.norms import NoNorm
from jaxsae.sae.readout import Bias
from jaxsae.sae.records import Ctx, Rows, Want
from jaxsae.sae.row_shape import RowShape
from jaxsae.sae.selectors import Rank, Relu, Threshold
from jaxsae.sae.slots import Dictionary, Encode, Norm, Readout
from jaxsae.typing import Params, PyTree


@register("sae.meta")
@dataclass(frozen=True)
class Meta:
    """Where a dictionary comes from.  `extra` keeps anything else as (name, plain value) pairs."""

    recipe: str = ""
    host: str = ""
    site: str = ""
    extra: tuple[Any, ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """A value of `extra` by name."""
        return dict(self.extra).get(name, default)

    def with_extra(self, **values: Any) -> "Meta":
        """A copy with more (or other) values in `extra`."""
        return replace(self, extra=tuple(sorted({**dict(self.extra), **values}.items())))


@struct.dataclass
class SAE:
    """A frozen sparse autoencoder: a pytree of arrays and the slot members that read them.

        codes = encode(norm(x))        yhat = undo(codes @ W_dec + b_dec)

    `params` holds W_enc [D, S], b_enc [S], W_dec [S, E], b_dec [E] and, by form, threshold [S] or k [].  It can be
    jitted, vmapped, differentiated, sharded and sent through `jax.tree.map` like any pytree.

    Example:
        >>> sae = make_sae({"W_enc": jnp.eye(2), "b_enc": jnp.zeros(2), "W_dec": jnp.eye(2), "b_dec": jnp.zeros(2)})
        >>> sae(jnp.array([[1.0, -2.0]])).tolist()
        [[1.0, 0.0]]
    """

    params: Params
    norm: Norm = struct.field(pytree_node=False, default=NoNorm())
    encoder: Encode = struct.field(pytree_node=False, default=None)
    dictionary: Dictionary = struct.field(pytree_node=False, default=None)
    readout: Readout = struct.field(pytree_node=False, default=None)
    meta: Meta = struct.field(pytree_node=False, default=Meta())
    rows: RowShape = struct.field(pytree_node=False, default=RowShape())

    @property
    def d_in(self) -> int:
        return self.encoder.d_in

    @property
    def d_out(self) -> int:
        return self.dictionary.d_out

    @property
    def d_sae(self) -> int:
        return self.dictionary.d_sae

    @property
    def form(self) -> str:
        """ "rank" (k best per row) or "threshold"."""
        return self.encoder.forms[0]

    @property
    def k(self) -> int | None:
        """Latents kept per row in the rank form, else None."""
        return int(self.params["k"]) if "k" in self.params else None

    @property
    def W_enc(self) -> jax.Array:
        return self.params["W_enc"]

    @property
    def b_enc(self) -> jax.Array:
        return self.params["b_enc"]

    @property
    def W_dec(self) -> jax.Array:
        """[S, E] atoms."""
        return self.dictionary.atoms(self.params)

    @property
    def b_dec(self) -> jax.Array:
        return self.params["b_dec"]

    @property
    def threshold(self) -> jax.Array | None:
        """[S] in the threshold form (None where it is 0 everywhere), else None."""
        return self.params.get("threshold")

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype it computes in: that of its atoms."""
        return self.params[next(iter(self.dictionary.axes))].dtype

    def encode(self, x: jax.Array) -> Codes:
        """Codes of raw rows x [..., D] (or of the axes that `rows` declares).  Attention runs along the last of "...".

        Raises:
            ConfigError: the last axes are not those of a row.
        """
        lead = self.rows.lead(x, self.d_in)
        inner = self.norm.inputs(self.params, x.reshape(-1, self.d_in).astype(self.dtype))
        rows = Rows(inner, inner, jnp.ones(len(inner), jnp.float32))
        hyper = {"k": self.params["k"]} if "k" in self.params else {}
        ctx = Ctx(jnp.int32(0), None, hyper, {}, rows=rows, train=False)
        encoder = in_sequences(self.encoder, lead)
        selection = encoder.encode(self.params, inner, self.dictionary, ctx, Want(), True)
        return selection.codes.reshape(*lead)

    def decode(self, codes: Codes, like: jax.Array | None = None) -> jax.Array:
        """The reconstruction [..., E] of codes.

        Args:
            codes: what `encode` returned, edited or not.
            like: the raw rows x [..., D].  Needed to undo a per-row input scaling and to add a linear skip; without
                it the latent part plus bias is returned, in the scale the dictionary works in.
        """
        lead = codes.values.shape[:-1]
        flat = codes.reshape(-1)
        x = None if like is None else like.reshape(-1, self.d_in).astype(self.dtype)
        inner = None if x is None else self.norm.inputs(self.params, x)
        readout = in_sequences(self.readout, lead)
        y = decode_rows(self.dictionary, self.params, flat, inner)
        y = y + readout.base(self.params, x if getattr(readout, "raw", False) else inner)
        if x is not None:
            y = self.norm.undo(self.params, y, x)
        return self.rows.restore(y, lead, like, self.d_in)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The full reconstruction [..., E] of raw rows [..., D]: decode(encode(x), like=x)."""
        return self.decode(self.encode(x), like=x)


def in_sequences(member: Any, lead: tuple[int, ...]) -> Any:
    """A slot member told that each run of `lead[-1]` rows is one sequence, if it looks along sequences at all."""
    return member.in_sequences(lead[-1] if lead else 1) if hasattr(member, "in_sequences") else member


def make_sae(
    params: Params,
    *,
    norm: Norm = NoNorm(),
    subtract_b_dec: bool = False,
    k: int | None = None,
    signed: bool = False,
    by_norm: bool = False,
    meta: Meta = Meta(),
) -> SAE:
    """A plain SAE from its arrays: W_enc [D, S], b_enc [S], W_dec [S, E], b_dec [E], optionally threshold [S].

    Args:
        params: the arrays.
        norm: input scaling that stays with the coder.
        subtract_b_dec: encode x - b_dec.
        k: keep the k best per row; None for ReLU, or the threshold if `params` has one.
        signed: rank or test magnitudes and keep signs.
        by_norm: rank pre-activations times the norm of the atom.
        meta: provenance.

    Raises:
        ConfigError: a missing array, or shapes that do not belong together.
    """
    missing = [n for n in ("W_enc", "b_enc", "W_dec", "b_dec") if n not in params]
    if missing:
        raise ConfigError(f"an SAE needs the array {missing[0]!r}; found {', '.join(sorted(params))}")
    (d_in, d_sae), (_, d_out) = params["W_enc"].shape, params["W_dec"].shape
    if k is not None and not 0 < k <= d_sae:
        raise ConfigError(f"k must lie between 1 and d_sae = {d_sae}, found {k}")
    selector: Any = Threshold(signed) if "threshold" in params else Relu()
    if k is not None:
        selector, params = Rank(k, signed=signed, by_norm=by_norm), {**params, "k": jnp.int32(k)}
    encoder = PreSelect(Affine(d_in, d_sae, "b_dec" if subtract_b_dec else "none"), selector)
    sae = SAE(params, norm, encoder, Free(d_sae, d_out), Bias(d_out), meta)
    check_shapes(sae)
    return sae


def check_shapes(sae: SAE) -> None:
    """Holds every array against the axis letters its slot declares.

    Raises:
        ConfigError: naming the first array that does not fit.
    """
    sizes = {"D": sae.d_in, "E": sae.d_out, "S": sae.d_sae}
    axes = {**sae.norm.axes, **sae.encoder.axes, **sae.dictionary.axes, **sae.readout.axes}
    for name, letters in axes.items():
        if name not in sae.params:
            raise ConfigError(f"array {name!r} is missing; found {', '.join(sorted(sae.params))}")
        shape = tuple(sae.params[name].shape)
        wanted = tuple(sizes.get(c, -1) for c in letters)
        if len(shape) != len(wanted) or any(w not in (-1, s) for s, w in zip(shape, wanted, strict=True)):
            raise ConfigError(f"array {name!r} [{letters}] should have shape {wanted}, found {shape}")


def freeze(
    params: Params,
    track: PyTree,
    hyper: Params,
    *,
    norm: Norm,
    encoder: Encode,
    dictionary: Dictionary,
    readout: Readout,
    form: str = "auto",
    meta: Meta = Meta(),
) -> SAE:
    """The inference object of a trained coder.

    Atoms are materialised, a foldable norm is folded into the weights, and the selection takes its inference form.  A
    dictionary whose latents are `ordered` (several sites, linear transforms) keeps its structure and its norm.

    Args:
        params: all leaves of the trained coder.
        track: tracker states (the threshold average is read from here).
        hyper: swept scalars (k is read from here).
        norm: input scaling of the trained coder.
        encoder: its Encode member.
        dictionary: its Dictionary member.
        readout: its Readout member.
        form: "rank", "threshold", or "auto": rank for row ranks, threshold for everything else.
        meta: provenance; the form chosen is recorded in it.

    Raises:
        ConfigError: the method has no such form.
    """
    form = encoder.forms[0] if form == "auto" else form
    inference, leaves = encoder.frozen(params, track, hyper, dictionary, form)
    leaves = {**leaves, **{n: params[n] for n in readout.axes}}
    if getattr(dictionary, "ordered", False):  # its structure is what it is: no matrix of atoms, nothing folded
        kept = {n: params[n] for n in (*dictionary.axes, *norm.axes)}
        return SAE({**leaves, **kept}, norm, inference, dictionary, readout, meta.with_extra(form=form))
    leaves["W_dec"] = dictionary.atoms(params)
    if norm.foldable:
        leaves, norm = norm.fold(params, leaves), NoNorm()
    else:
        leaves = {**leaves, **{n: params[n] for n in norm.axes}}
    plain = Free(dictionary.d_sae, dictionary.d_out)
    return SAE(leaves, norm, inference, plain, readout, meta.with_extra(form=form))
