"""Mutual Choice: Ayonrinde 2024, "Adaptive Sparse Allocation with Mutual Choice & Feature Choice SAEs", 2411.02124."""

from jaxsae.objective import AuxZipf, Linear, NormalisedMse
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.defaults import aux_latents, lr_rule
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import (
    Affine,
    BatchRule,
    Bias,
    Density,
    EmaThreshold,
    Fired,
    NoNorm,
    PreSelect,
    Rank,
    RowNorm,
    Unit,
)


@published
def mutual_choice(
    d_in: int,
    d_sae: int,
    k: int = 32,
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
    """Mutual Choice (Ayonrinde 2024, 2411.02124): the k B strongest pairs of row and latent of the batch.

        match matrix M [B, S] of 0 and 1:  maximise sum M pre  subject to  sum M = k B
        z = relu(pre) M      xhat = z W_dec + b_dec      L = ||x - xhat||^2 / var(x) + (1/32) aux_zipf

    The selection is that of BatchTopK; what is new is the view of it as an allocation, and the auxiliary loss, which
    revives not only dead latents but all that fire less often than a Zipf law k / (rank + q)^s lets expect (see
    `jaxsae.objective.AuxZipf`).  The first phase of `feature_choice`: its densities give that method's q and s, by
    `jaxsae.sae.fit_zipf`.  Inference: one threshold for all latents.

    Expect: FVU at most that of `topk` at equal mean L0 where rows differ in complexity (testbed S4), fewer dead
    latents.

    Certainty: the allocation follows the paper's abstract.  The paper's own numbers for the Zipf law, the weight and
    the set of underused latents were not found in any public text or code that could be read (abstract only): zipf_q,
    zipf_s, zipf_tolerance and the form of the loss are this library's reading of it.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        k: mean latents per row.
        lr: peak learning rate; None for 2e-4 / sqrt(d_sae / 2^14), meant for large batches.
        lr_warm_up_steps: linear warm-up.
        lr_decay_fraction: share of the run, at its end, over which the rate falls linearly to 0.
        aux_loss_coefficient: weight of the auxiliary loss; 0 removes the term.
        k_aux: underused latents used by it; None for the power of two nearest to d_in / 2.
        zipf_q: shift of the Zipf law.
        zipf_s: exponent of the Zipf law.
        zipf_tolerance: share by which a latent must fall short of the law to be revived; 1 is AuxK.
        dead_after_tokens: a latent silent for so many tokens is reported as dead.
        normalize_activations: standardise each row (False: rows as they come).
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run, needed by the decay.

    Example:
        >>> mutual_choice(d_in=16, d_sae=64, k=4).encoder.forms
        ('threshold',)
    """
    aux = aux_latents(k_aux, d_in, d_sae)
    decay = round(lr_decay_fraction * training_steps)
    return Recipe(
        name="mutual_choice",
        norm=RowNorm() if normalize_activations else NoNorm(),
        encoder=PreSelect(Affine(d_in, d_sae, b_pre="b_dec"), Rank(min(d_sae, 4 * k), BatchRule())),
        dictionary=Unit(d_sae, d_in),
        readout=Bias(d_in, start="geometric_median"),
        terms=(NormalisedMse(), *((AuxZipf(aux),) if aux_loss_coefficient else ())),
        trackers=(Fired(), Density(), EmaThreshold()),
        hyper=(
            ("lr", lr if lr is not None else lr_rule(d_sae)),
            ("k", k),
            ("dead_after_tokens", dead_after_tokens),
            ("zipf_q", zipf_q),
            ("zipf_s", zipf_s),
            ("zipf_tolerance", zipf_tolerance),
            *((("aux_loss_coefficient", aux_loss_coefficient),) if aux_loss_coefficient else ()),
        ),
        optimizer=Adam(0.9, 0.999, eps=6.25e-10),
        lr_schedule=Linear(lr_warm_up_steps, decay, training_steps),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
