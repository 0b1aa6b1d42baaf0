"""A plain dictionary taken apart for writing: its arrays, and the foldings that bring it into another format's terms.

Every folding is exact in real arithmetic, is done in float32 or better, and leaves a note.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxsae.io.formats._base import Notes, refuse
from jaxsae.io.formats._weights import (
    inverse,
    product,
    row_norms,
    scale_columns,
    scale_rows,
    vector_times,
    widened,
)
from jaxsae.sae import (
    SAE,
    Affine,
    Bias,
    DatasetNorm,
    Free,
    Gated,
    Glu,
    LinearSkip,
    NoNorm,
    PreSelect,
    Rank,
    Relu,
    RowRule,
    RowShape,
    Standardise,
    Threshold,
    Unit,
    Whiten,
)

FOLDABLE = (DatasetNorm, Standardise, Whiten)
#: Formats that have words for a selection; suggested where another has none.
ABLE = {
    "relu": ("sae_lens", "dictionary_learning", "openai", "sparsify", "gemma_scope", "llamascopium", "circuit_tracer"),
    "topk": ("sae_lens", "dictionary_learning", "sparsify", "llamascopium"),
    "jumprelu": ("sae_lens", "dictionary_learning", "gemma_scope", "gemma_scope_2", "llamascopium", "circuit_tracer"),
    "abstopk": ("sae_lens",),
    "gated": ("sae_lens", "dictionary_learning"),
    "glu": ("llamascopium",),
    "GroupMax": ("sparsify",),
}
PER_LATENT = ("b_enc", "b_gate", "b_mag", "threshold")


@dataclass(frozen=True)
class Parts:
    """One affine (or gated, or GLU) encoder, one selector, one matrix of atoms.

    `arrays` may be read-only views of the SAE's own; every method returns new ones where it changes them.
    """

    format: str
    notes: Notes
    arrays: dict[str, np.ndarray]
    encoder: Any
    selector: Any
    norm: Any
    rows: RowShape
    k: Any
    centred: bool

    @property
    def d_in(self) -> int:
        return self.arrays["W_enc"].shape[0]

    @property
    def d_sae(self) -> int:
        return self.arrays["W_enc"].shape[1]

    @property
    def d_out(self) -> int:
        return self.arrays["W_dec"].shape[1]

    @property
    def skip(self) -> bool:
        return "W_skip" in self.arrays

    @property
    def kind(self) -> str:
        """What selects: relu, gated, jumprelu, topk, abstopk, or the name of the selector's class."""
        s = self.selector
        if isinstance(self.encoder, Gated):
            return "gated" if isinstance(s, Relu) else f"a gated encoder with {type(s).__name__}"
        if isinstance(self.encoder, Glu):
            return "glu"
        if isinstance(s, Relu):
            return "relu"
        if isinstance(s, Threshold) and not s.signed and self._rectified(s):
            return "jumprelu"
        if isinstance(s, Rank) and isinstance(s.rule, RowRule) and (s.rectify or s.signed):
            return "abstopk" if s.signed else "topk"
        if isinstance(s, Rank) and not s.rule.per_row:
            return "top-k of the whole batch (load it with selection='threshold', or export its threshold form)"
        return str(s)

    def _rectified(self, s: Threshold) -> bool:
        return s.rectify or not np.any(self.arrays["threshold"] < 0)

    def needs(self, *kinds: str) -> str:
        """`kind`, held against those a format has.

        Raises:
            FormatError: it has none for this one.
        """
        if self.kind not in kinds:
            refuse(self.format, f"the selection {self.kind}", ABLE.get(self.kind.split("(")[0], ()))
        return self.kind

    def needs_plain_rows(self, skip: bool = False, wide: bool = False) -> None:
        """Refuses per-row input scaling and heads; a skip path and d_out != d_in unless told otherwise."""
        if self.rows.heads:
            refuse(self.format, "rows split into heads (hook_z)", ("sae_lens",))
        if not isinstance(self.norm, NoNorm):
            refuse(self.format, f"the input scaling {self.norm}", ("sae_lens",))
        if self.skip and not skip:
            refuse(self.format, "a linear skip path", ("sae_lens", "circuit_tracer", "gemma_scope_2"))
        if self.d_in != self.d_out and not wide:
            refuse(self.format, f"d_out {self.d_out} where d_in is {self.d_in}", ("sae_lens", "gemma_scope"))

    def _with(self, **arrays: np.ndarray) -> "Parts":
        return replace(self, arrays={**self.arrays, **arrays})

    def wide(self) -> "Parts":
        """16-bit arrays as float32, before anything is folded into them."""
        arrays = widened(self.arrays)
        if any(arrays[n] is not self.arrays[n] for n in arrays):
            self.notes("16-bit weights are stored in float32, so that nothing is rounded twice")
        return replace(self, arrays=arrays)

    # ------------------------------------------------------------------------------------------ foldings
    def fold_scaling(self) -> "Parts":
        """A constant input scaling into the weights; a per-row one stays in `norm`."""
        if not isinstance(self.norm, FOLDABLE):
            return self
        own = self.wide()
        if getattr(self.selector, "by_norm", False) and not isinstance(self.norm, DatasetNorm):
            own = own.unit_atoms()  # the norms that rank are those of the atoms before the scaling goes into them
        a = own.arrays
        plain = isinstance(self.norm, DatasetNorm)
        if own.centred and not (plain and float(a["c_in"]) == float(a["c_out"])):
            own = own.uncentred()
            a = own.arrays
        if isinstance(self.norm, DatasetNorm):
            own = own._with(**_fold_dataset(a))
        elif isinstance(self.norm, Standardise):
            own = own._with(**_fold_standardise(a))
        else:
            own = own._with(**_fold_whiten(a))
        self.notes(f"input scaling ({type(self.norm).__name__}) folded into the weights and biases")
        arrays = {n: v for n, v in own.arrays.items() if n not in self.norm.axes}
        return replace(own, norm=NoNorm(), arrays=arrays)

    def uncentred(self) -> "Parts":
        """b_enc' = b_enc - b_dec W_enc (gated: also b_mag, scaled by exp(r_mag)); then nothing is subtracted from x."""
        return self._shifted(-1.0, False) if self.centred else self

    def centred_by_b_dec(self) -> "Parts":
        """b_enc' = b_enc + b_dec W_enc; then b_dec is subtracted from x."""
        if self.centred:
            return self
        if self.d_in != self.d_out:
            refuse(self.format, f"an encoder that subtracts b_dec where d_in {self.d_in} is not d_out {self.d_out}")
        return self._shifted(1.0, True)

    def _shifted(self, sign: float, centred: bool) -> "Parts":
        own = self.wide()
        shift = sign * vector_times(own.arrays["b_dec"], own.arrays["W_enc"])
        new: dict[str, np.ndarray] = {n: own.arrays[n] + shift for n in ("b_enc", "b_gate") if n in own.arrays}
        if "b_mag" in own.arrays:
            new["b_mag"] = own.arrays["b_mag"] + shift * np.exp(own.arrays["r_mag"].astype(np.float64))
        if "W_glu" in own.arrays:
            glu = sign * vector_times(own.arrays["b_dec"], own.arrays["W_glu"])
            new["b_glu"] = own.arrays["b_glu"] + glu
        if np.any(own.arrays["b_dec"]):
            self.notes(f"b_dec W_enc {'added to' if sign > 0 else 'subtracted from'} the encoder bias (centring)")
        return replace(own._with(**{n: v.astype(np.float32) for n, v in new.items()}), centred=centred)

    def unit_atoms(self) -> "Parts":
        """Atoms of norm 1, latents in units of the old norms: the order of a ranking by norm becomes a plain one."""
        own = self.wide()
        n = row_norms(own.arrays["W_dec"])
        if np.all(n == 1):
            return replace(self, selector=_without_norm(self.selector))
        new = {
            "W_enc": scale_columns(own.arrays["W_enc"].copy(), n),
            "W_dec": scale_rows(own.arrays["W_dec"].copy(), inverse(n)),
            **{m: (own.arrays[m] * n).astype(np.float32) for m in PER_LATENT if m in own.arrays},
        }
        self.notes("decoder norms folded: atoms have norm 1, latents are multiplied by the old norm")
        self.notes.scaled(n)
        return replace(own._with(**new), selector=_without_norm(self.selector))

    def zero_threshold(self) -> "Parts":
        """ReLU as a threshold of 0."""
        if self.kind != "relu":
            return self
        own = self._with(threshold=np.zeros(self.d_sae, self.arrays["W_enc"].dtype))
        return replace(own, selector=Threshold())


def _without_norm(selector: Any) -> Any:
    return replace(selector, by_norm=False) if isinstance(selector, Rank) else selector


def _fold_dataset(a: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    c_in, c_out = float(a["c_in"]), float(a["c_out"])
    out: dict[str, np.ndarray] = {"W_enc": a["W_enc"] * np.float32(c_in), "W_dec": a["W_dec"] / np.float32(c_out)}
    out["b_dec"] = (a["b_dec"] / c_out).astype(np.float32)
    if "W_glu" in a:
        out["W_glu"] = a["W_glu"] * np.float32(c_in)
    if "W_skip" in a:
        out["W_skip"] = a["W_skip"] * np.float32(c_in / c_out)
    return out


def _fold_standardise(a: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    x_scale, y_scale = a["x_scale"].astype(np.float64), a["y_scale"].astype(np.float64)
    out: dict[str, np.ndarray] = {
        "W_enc": scale_rows(a["W_enc"].copy(), x_scale),
        "W_dec": scale_columns(a["W_dec"].copy(), 1 / y_scale),
    }
    b_dec = a["b_dec"] / y_scale + a["y_mean"]
    if "W_skip" in a:
        out["W_skip"] = scale_columns(scale_rows(a["W_skip"].copy(), x_scale), 1 / y_scale)
        b_dec -= vector_times(a["x_mean"], out["W_skip"])
    out["b_dec"] = b_dec.astype(np.float32)
    return out | _shift_biases(a, -vector_times(a["x_mean"], out["W_enc"]))


def _fold_whiten(a: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = {"W_enc": product(a["white"], a["W_enc"]), "W_dec": product(a["W_dec"], a["colour"])}
    out["b_dec"] = (vector_times(a["b_dec"], a["colour"]) + a["white_mean"]).astype(np.float32)
    return out | _shift_biases(a, -vector_times(a["white_mean"], out["W_enc"]))


def _shift_biases(a: dict[str, np.ndarray], shift: np.ndarray) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {n: (a[n] + shift).astype(np.float32) for n in ("b_enc", "b_gate") if n in a}
    if "b_mag" in a:
        out["b_mag"] = (a["b_mag"] + shift * np.exp(a["r_mag"].astype(np.float64))).astype(np.float32)
    return out


def parts(sae: SAE, format: str, notes: Notes, could: tuple[str, ...] = ()) -> Parts:
    """Takes an SAE apart.

    Args:
        sae: the dictionary.
        format: the one to be written, for messages.
        notes: where foldings are recorded.
        could: formats that can express what this one cannot.

    Raises:
        FormatError: its slots are not plain: several sites, attention, pursuit, input-dependent atoms.
    """
    encode: Any = sae.encoder
    plain = isinstance(encode, PreSelect) and isinstance(encode.encoder, (Affine, Gated, Glu))
    if not plain:
        inner = encode.encoder if isinstance(encode, PreSelect) else encode
        refuse(format, f"the encoder {type(inner).__name__}", could)
    if sae.rows.inputs or hasattr(sae.dictionary, "decode_with") or not isinstance(sae.readout, (Bias, LinearSkip)):
        what = f"{len(sae.rows.inputs) and sae.rows.inputs[0]} sites" if sae.rows.inputs else type(sae.readout).__name__
        refuse(format, f"a dictionary of {what} ({type(sae.dictionary).__name__})", could)
    if getattr(encode.selector, "by_norm", False) and not isinstance(sae.dictionary, (Free, Unit)):
        refuse(format, f"a ranking by the norms of {type(sae.dictionary).__name__}", could)
    if isinstance(encode.encoder, Glu) and isinstance(sae.norm, (Standardise, Whiten)):
        refuse(format, f"a GLU encoder with {type(sae.norm).__name__}", could)
    arrays = {n: np.asarray(a) for n, a in sae.params.items() if n != "k"}
    arrays["W_dec"] = np.asarray(sae.W_dec)
    inner = encode.encoder
    return Parts(format, notes, arrays, inner, encode.selector, sae.norm, sae.rows, _k(sae), inner.b_pre == "b_dec")


def _k(sae: SAE) -> Any:
    """k as stored: whole for a top-k per row, possibly a fraction for one of a batch."""
    return None if "k" not in sae.params else np.asarray(sae.params["k"]).item()
