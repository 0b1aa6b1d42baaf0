"""top-AFA: Lee et al. 2025, "Evaluating and Designing SAEs by Approximating Quasi-Orthogonality", 2503.24277."""

from jaxsae.objective import Afa, AuxK, Linear, NormalisedMse
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.defaults import aux_latents
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import AfaRule, Affine, Bias, EmaThreshold, Fired, NoNorm, PreSelect, Rank, RowNorm, Unit


@published
def top_afa(
    d_in: int,
    d_sae: int,
    capacity: int = 256,
    afa_coefficient: float = 1 / 16,
    lr: float = 3e-4,
    lr_warm_up_steps: int = 0,
    lr_decay_fraction: float = 0.0,
    aux_loss_coefficient: float = 1 / 32,
    k_aux: int | None = 512,
    dead_after_tokens: int = 20_480,
    normalize_activations: bool = True,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """top-AFA (Lee et al. 2025, 2503.24277): keep latents until the code is as long as the row; there is no k.

        pre = (x - b_dec) W_enc + b_enc      s_1 >= s_2 >= ...  the sorted relu(pre_j) ||d_j||
        keep s_1 .. s_i*,   i* = argmin_i | sqrt(s_1^2 + ... + s_i^2) - ||x - b_dec||_2 |
        L = ||x - xhat||^2 / var(x) + (1/32) L_aux + a mean (||z||_2 - ||x||_2)^2

    If atoms are nearly orthogonal, a faithful code is about as long as the row it stands for (approximate feature
    activation).  L0 follows from the data and from a: the tests see it differ from row to row, and the terms pull codes
    towards the line ||z|| = ||x||.  Early on pre-activations may be too small for any list to reach ||x||: such steps
    use the full list (metric `exact` 0) and are slow; tied unit atoms at the start keep that short.  Inference: the
    same rule, over the full list; or a threshold averaged over training, which is another selection.

    Expect: FVU comparable to a well tuned `topk` without tuning k (testbed S1); L0 follows the true count on S4.

    Certainty: rule and loss were read in the authors' code (whose default is a = 0); a = 1/16 is what another library's
    documentation quotes from the paper.  Departures: the authors' coder has no encoder bias, which here starts at 0,
    and they divide the squared error by its number of entries where we divide by the variance of the batch (equal up to
    2 % for standardised rows), AuxK likewise by the residual's variance.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        capacity: length of the ranked list; rows that need more make the step recompute with the full list.
        afa_coefficient: a; 0 removes the term.
        lr: peak learning rate.
        lr_warm_up_steps: linear warm-up.
        lr_decay_fraction: share of the run, at its end, over which the rate falls linearly to 0.
        aux_loss_coefficient: weight of AuxK; 0 removes the term.
        k_aux: dead latents used by AuxK, at most d_sae; None for the power of two nearest to d_in / 2.
        dead_after_tokens: a latent silent for so many tokens counts as dead (5 batches of 4096 in the authors' code).
        normalize_activations: standardise each row (False: rows as they come).
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run, needed by the decay.

    Example:
        >>> top_afa(d_in=16, d_sae=64).encoder.selector.cap
        64
    """
    aux = aux_latents(k_aux, d_in, d_sae)
    decay = round(lr_decay_fraction * training_steps)
    return Recipe(
        name="top_afa",
        norm=RowNorm() if normalize_activations else NoNorm(),
        encoder=PreSelect(Affine(d_in, d_sae, b_pre="b_dec"), Rank(min(d_sae, capacity), AfaRule(), by_norm=True)),
        dictionary=Unit(d_sae, d_in),
        readout=Bias(d_in),
        terms=(
            NormalisedMse(),
            *((AuxK(aux),) if aux_loss_coefficient else ()),
            *((Afa(),) if afa_coefficient else ()),
        ),
        trackers=(Fired(), EmaThreshold()),
        hyper=(
            ("lr", lr),
            ("dead_after_tokens", dead_after_tokens),
            *((("aux_loss_coefficient", aux_loss_coefficient),) if aux_loss_coefficient else ()),
            *((("afa_coefficient", afa_coefficient),) if afa_coefficient else ()),
        ),
        optimizer=Adam(0.9, 0.99),
        lr_schedule=Linear(lr_warm_up_steps, decay, training_steps),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
