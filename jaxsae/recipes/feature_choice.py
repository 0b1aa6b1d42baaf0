"""Feature Choice: Ayonrinde 2024, "Adaptive Sparse Allocation with Mutual Choice & Feature Choice SAEs", 2411.02124."""

from typing import Literal

from jaxsae.objective import AuxZipf, Linear, NormalisedMse
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.defaults import aux_latents, lr_rule
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import Affine, Bias, Column, Density, EmaThreshold, Fired, NoNorm, PreSelect, RowNorm, Unit


@published
def feature_choice(
    d_in: int,
    d_sae: int,
    k: int = 32,
    shares: Literal["equal", "zipf"] = "equal",
    lr: float | None = None,
    lr_warm_up_steps: int = 0,
    lr_decay_fraction: float = 0.0,
    aux_loss_coefficient: float = 1 / 32,
    k_aux: int | None = None,
    zipf_q: float = 10.0,
    zipf_s: float = 1.0,
    zipf_tolerance: float = 0.5,
    dead_after_tokens: int = 10_000_000,
    normalize_activations: bool = True,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """Feature Choice (Ayonrinde 2024, 2411.02124): each latent keeps its m_j strongest rows of the batch.

        match matrix M [B, S] of 0 and 1:  maximise sum M pre  subject to  sum over rows M_j = m_j,   sum_j m_j = k B
        z = relu(pre) M      xhat = z W_dec + b_dec      L = ||x - xhat||^2 / var(x) + (1/32) aux_zipf
        equal: m_j = k B / S          zipf: m_j = k B / (rank_j + q)^s / sum_r 1 / (r + q)^s

    No latent can die of never being chosen; rows get as many latents as choose them.  Progressive training, as the
    paper proposes: train `mutual_choice`, fit its densities, go on with zipf shares by the same ranks:

        fit = jaxsae.sae.fit_zipf(jaxsae.sae.density_value(first.track["density"]))
        second = feature_choice(d_in, d_sae, k, shares="zipf", zipf_q=fit.q, zipf_s=fit.s)
        state, which = jaxsae.recipes.adopt(second, first, key, batch)       ranks come with the tracker `density`

    A choice within a batch lets rows see each other, and needs batches much larger than 1 / (smallest density): with
    m_j < 1 a latent gets a row in some batches only.  Codes are dense, which costs [B, d_sae] memory, and columns are
    ranked, so this is a method for small dictionaries or for a last phase.  Inference: one threshold per latent, the
    average of its smallest kept score.  It is biased up (an average of extremes), so the frozen coder is sparser than
    k, the more so the fewer rows a batch has (`tests/sae/columns_test.py` shows the direction).

    Expect: about no dead latents at large d_sae (testbed S1), where `topk` without AuxK has many.

    Certainty: the allocation follows the paper's abstract, which bounds each column by m.  Numbers of the Zipf law and
    the auxiliary loss are this library's reading of it (see `mutual_choice`).

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        k: mean latents per row.
        shares: rows per latent, equal or by the Zipf law.
        lr: peak learning rate; None for 2e-4 / sqrt(d_sae / 2^14), meant for large batches.
        lr_warm_up_steps: linear warm-up.
        lr_decay_fraction: share of the run, at its end, over which the rate falls linearly to 0.
        aux_loss_coefficient: weight of the auxiliary loss; 0 removes the term.
        k_aux: underused latents used by it; None for the power of two nearest to d_in / 2.
        zipf_q: shift of the Zipf law; without effect for equal shares.
        zipf_s: exponent of the Zipf law; 0 for equal shares, whatever is given.
        zipf_tolerance: share by which a latent must fall short of its due to be revived; 1 is AuxK.
        dead_after_tokens: a latent silent for so many tokens is reported as dead.
        normalize_activations: standardise each row (False: rows as they come).
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run, needed by the decay.

    Example:
        >>> feature_choice(d_in=16, d_sae=64, k=4).encoder.forms
        ('threshold',)
    """
    aux = aux_latents(k_aux, d_in, d_sae)
    decay = round(lr_decay_fraction * training_steps)
    return Recipe(
        name="feature_choice",
        norm=RowNorm() if normalize_activations else NoNorm(),
        encoder=PreSelect(Affine(d_in, d_sae, b_pre="b_dec"), Column(k, zipf=shares == "zipf")),
        dictionary=Unit(d_sae, d_in),
        readout=Bias(d_in, start="geometric_median"),
        terms=(NormalisedMse(), *((AuxZipf(aux),) if aux_loss_coefficient else ())),
        trackers=(Fired(), Density(), EmaThreshold(per_latent=True)),
        hyper=(
            ("lr", lr if lr is not None else lr_rule(d_sae)),
            ("k", k),
            ("dead_after_tokens", dead_after_tokens),
            ("zipf_q", zipf_q),
            ("zipf_s", zipf_s if shares == "zipf" else 0.0),
            ("zipf_tolerance", zipf_tolerance),
            *((("aux_loss_coefficient", aux_loss_coefficient),) if aux_loss_coefficient else ()),
        ),
        optimizer=Adam(0.9, 0.999, eps=6.25e-10),
        lr_schedule=Linear(lr_warm_up_steps, decay, training_steps),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
