"""Whole recipes for slot members that only make sense together: sites, sequences, gates, pursuit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.objective import (
    L1,
    AuxK,
    AuxZipf,
    GateAux,
    GateL1,
    L0Step,
    Mse,
    PAnneal,
    PNorm,
    ProbeDrift,
    ProbeError,
    TargetL0,
)
from jaxsae.recipes import Recipe, Resample, Reservoir
from jaxsae.sae import (
    Affine,
    Bias,
    Blocks,
    BySite,
    Column,
    Density,
    EmaThreshold,
    Fired,
    Free,
    Gated,
    GroupMax,
    Identity,
    JumpRelu,
    L0Controller,
    Lorsa,
    OrthogonalPursuit,
    PerSite,
    PerSiteSkip,
    PreSelect,
    ProbeRule,
    Pursuit,
    Quantised,
    Rank,
    Relu,
    SharedSites,
    Stacked,
    TanhRelu,
    Temporal,
    TemporalReadout,
    Tied,
    TiedAffine,
    Transforms,
    Triangular,
)

SITES, POSITIONS, HEADS = 2, 4, 2


def _plain(base: Recipe, encoder: Any, **slots: Any) -> Recipe:
    """The base recipe without its selection among dead latents and its threshold average."""
    return replace(base, encoder=encoder, terms=(Mse(coefficient=""),), trackers=(Fired(),), **slots)


def _atoms(base: Recipe) -> Free:
    return Free(base.d_sae, base.d_in)


def _temporal(base: Recipe) -> Recipe:
    encoder = Temporal(base.d_in, base.d_sae, HEADS, width=8, positions=POSITIONS)
    return _plain(base, PreSelect(encoder, Rank(4)), dictionary=_atoms(base), readout=TemporalReadout(encoder))


def _lorsa(base: Recipe) -> Recipe:
    encoder = Lorsa(base.d_in, base.d_sae, HEADS, 4, rotary_dim=2, context=POSITIONS, positions=POSITIONS)
    return _plain(base, PreSelect(encoder, Rank(4)), dictionary=_atoms(base))


def _clt(base: Recipe, readout: Any = None) -> Recipe:
    encoder = PreSelect(PerSite(base.d_in, base.d_sae, SITES), BySite(Rank(4), SITES))
    return _plain(
        base,
        encoder,
        dictionary=Triangular(base.d_sae, base.d_in, SITES),
        readout=readout or Bias(base.d_in),
    )


def _crosscoder(base: Recipe) -> Recipe:
    encoder = PreSelect(SharedSites(base.d_in, base.d_sae, SITES), BySite(Rank(4), SITES, by_norm=True))
    return _plain(base, encoder, dictionary=Blocks(base.d_sae, base.d_in, SITES))


def _gated(base: Recipe) -> Recipe:
    recipe = _plain(base, PreSelect(Gated(base.d_in, base.d_sae), Relu()))
    hyper = (*base.hyper, ("l1_coefficient", 0.01))
    return replace(recipe, terms=(Mse(coefficient=""), GateL1(), GateAux()), hyper=hyper)


def _jump(term: Any = L0Step()) -> Callable[[Recipe], Recipe]:
    """Learned thresholds with a term that reads them."""

    def whole(base: Recipe) -> Recipe:
        hyper = (*base.hyper, ("l0_coefficient", 0.01), ("target_l0", 4.0), ("bandwidth", 0.5))
        encoder = PreSelect(Affine(base.d_in, base.d_sae), JumpRelu(0.3))
        terms = (Mse(coefficient=""), term)
        return replace(base, encoder=encoder, terms=terms, trackers=(Fired(),), hyper=hyper)

    return whole


def _p_norm(base: Recipe) -> Recipe:
    """A penalty whose exponent changes within the few steps of a test."""
    trackers = (*base.trackers, PAnneal(first=1, last=4, updates=3, queue=1))
    hyper = (*base.hyper, ("sparsity_coefficient", 0.01))
    return replace(base, terms=(*base.terms, PNorm()), trackers=trackers, hyper=hyper)


def _resampled(base: Recipe) -> Recipe:
    """Latents silent for two batches are redrawn after the second step."""
    trackers = (*base.trackers, Reservoir(base.d_in, 8, at=(2,)))
    return replace(base, trackers=trackers, transforms=(Resample(at=(2,)),))


def _transforms(base: Recipe) -> Recipe:
    dictionary = Transforms(base.d_in, base.d_in, ((1, base.d_sae - 8), (2, 8)))
    encoder = PreSelect(Affine(base.d_in, base.d_sae, "none", "random"), Rank(4, by_norm=True))
    return _plain(base, encoder, dictionary=dictionary)


def _tied(base: Recipe) -> Recipe:
    encoder = PreSelect(TiedAffine(base.d_in, base.d_sae, "b_dec"), Rank(4))
    return replace(base, encoder=encoder, dictionary=Tied(base.d_sae, base.d_in))


def _by_column(base: Recipe) -> Recipe:
    selector, trackers = Column(4, zipf=True), (Fired(), Density(), EmaThreshold(per_latent=True))
    hyper = (*base.hyper, ("zipf_q", 1.0), ("zipf_s", 0.7))
    encoder = PreSelect(Affine(base.d_in, base.d_sae, "b_dec"), selector)
    return replace(base, encoder=encoder, trackers=trackers, hyper=hyper)


def _aux_zipf(base: Recipe) -> Recipe:
    terms = (*(t for t in base.terms if not isinstance(t, AuxK)), AuxZipf(6, evidence=1.0))
    hyper = (*base.hyper, ("zipf_q", 1.0), ("zipf_s", 0.7), ("zipf_tolerance", 0.2))
    return replace(base, terms=terms, trackers=(*base.trackers, Density()), hyper=hyper)


@register("whole.half_scored")
@dataclass(frozen=True)
class LengthScored:
    """Rows scored by their mean square: batches of the suite carry no scores."""

    scored = True

    def __call__(self, batch: Any, frozen: Any) -> Any:
        rows = Identity()(batch, frozen)
        return rows._replace(extra={"score": jnp.clip(jnp.mean(rows.x**2, axis=1), 0.0, 10.0)})


def _probed(base: Recipe, trained: bool = True) -> Recipe:
    rank = Rank(16, ProbeRule(base.d_in, trained=trained))
    terms = (*base.terms, ProbeError(), ProbeDrift()) if trained else base.terms
    hyper = (*base.hyper, ("probe_coefficient", 0.1))
    encoder = PreSelect(Affine(base.d_in, base.d_sae, "b_dec"), rank)
    return replace(base, view=LengthScored(), encoder=encoder, terms=terms, hyper=hyper)


def _controlled(base: Recipe) -> Recipe:
    terms = (Mse(), L1(controller="l0_controller"))
    hyper = (*base.hyper, ("l1_coefficient", 0.1), ("target_l0", 4.0))
    encoder = PreSelect(Affine(base.d_in, base.d_sae), Relu())
    return replace(_plain(base, encoder), terms=terms, hyper=hyper, trackers=(Fired(), L0Controller(0.1)))


def _selector(selector: Any) -> Callable[[Recipe], Recipe]:
    return lambda base: _plain(base, PreSelect(Affine(base.d_in, base.d_sae), selector))


#: Recipes by the tag of the member they show.
WHOLES: dict[str, Callable[[Recipe], Recipe]] = {
    "encoder.gated": _gated,
    "selector.jump_relu": _jump(),
    "term.l0_step": _jump(),
    "term.target_l0": _jump(TargetL0()),
    "term.gate_l1": _gated,
    "term.gate_aux": _gated,
    "term.p_norm": _p_norm,
    "tracker.p_anneal": _p_norm,
    "tracker.reservoir": _resampled,
    "transform.resample": _resampled,
    "encoder.temporal": _temporal,
    "readout.temporal": _temporal,
    "encoder.lorsa": _lorsa,
    "encoder.per_site": _clt,
    "selector.by_site": _clt,
    "dictionary.triangular": _clt,
    "readout.per_site_skip": lambda base: _clt(base, PerSiteSkip(base.d_in, base.d_in, SITES)),
    "encoder.shared_sites": _crosscoder,
    "dictionary.per_site": _crosscoder,
    "dictionary.stacked": lambda base: replace(base, dictionary=Stacked(base.d_sae, base.d_in, SITES)),
    "dictionary.transforms": _transforms,
    "dictionary.tied": _tied,
    "encoder.tied": _tied,
    "tracker.l0_controller": _controlled,
    "encode.pursuit": lambda base: _plain(base, Pursuit(base.d_in, base.d_sae, 3, stop_on_repeat=True)),
    "encode.orthogonal_pursuit": lambda base: _plain(base, OrthogonalPursuit(base.d_in, base.d_sae, 3)),
    "rule.probe": _probed,
    "selector.column": _by_column,
    "selector.group_max": _selector(GroupMax(4)),
    "term.aux_zipf": _aux_zipf,
    "term.probe_drift": _probed,
    "term.probe_error": _probed,
    "view.scored": lambda base: replace(base, view=LengthScored()),
    "selector.quantised": _selector(Quantised(4)),
    "selector.tanh_relu": _selector(TanhRelu()),
}
