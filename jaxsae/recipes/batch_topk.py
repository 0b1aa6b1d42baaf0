"""BatchTopK: Bussmann, Leask & Nanda 2024, "BatchTopK Sparse Autoencoders", 2412.06410."""

from jaxsae.objective import AuxK, Linear, Mse
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import Affine, BatchRule, Bias, EmaThreshold, Fired, NoNorm, PreSelect, Rank, RowNorm, Unit


@published
def batch_topk(
    d_in: int,
    d_sae: int,
    k: float = 32.0,
    lr: float = 3e-4,
    lr_warm_up_steps: int = 0,
    lr_decay_fraction: float = 0.0,
    aux_loss_coefficient: float = 1 / 32,
    k_aux: int = 512,
    dead_after_tokens: int = 20_480,
    threshold_beta: float = 0.99,
    candidates: int | None = None,
    by_norm: bool = False,
    normalize_activations: bool = True,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """BatchTopK (Bussmann et al. 2024, 2412.06410): k latents per row on average, not in every row.

        z = relu(pre) where it is among the k * B largest entries of the whole batch, else 0
        L = mean_B ||x - xhat||^2 + (1/32) mean_B ||stop_gradient(x - xhat) - e_hat||^2

    The selection is one for the global batch, however rows are ordered, padded or spread over devices.  Each row offers
    its `candidates` best latents; when a row would have kept more, the step is recomputed with all of them (metric
    `exact`).  Defaults are those of the authors' code: Adam (0.9, 0.99), no gradient clipping, batches of 4096 and a
    latent dead after 5 of them; there the AuxK residual is not detached, here it is; their encoder has no bias of its
    own (an unused parameter), ours starts at 0 and is trained.

    Inference: a threshold, the running mean of the smallest kept value.  Ours is debiased; theirs starts from zero.

    Expect: FVU below TopK at equal mean L0 where rows need different numbers of latents (testbed S4), per-row L0 that
    follows the true number, and the mean L0 of the threshold form within 5 % of k.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        k: latents per row on average; fractions allowed.
        lr: peak learning rate.
        lr_warm_up_steps: linear warm-up.
        lr_decay_fraction: share of the run, at its end, over which the rate falls linearly to 0.
        aux_loss_coefficient: weight of AuxK; 0 removes the term.
        k_aux: dead latents used by AuxK, no more than d_sae.
        dead_after_tokens: a latent silent for so many tokens counts as dead.
        threshold_beta: decay of the running mean of the threshold.
        candidates: latents each row offers; None for 4 k.
        by_norm: rank pre-activations times the norm of the atom; no difference while atoms have norm 1.
        normalize_activations: standardise each row.
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run, needed by the decay.

    Example:
        >>> batch_topk(d_in=16, d_sae=64, k=4, k_aux=8).encoder.selector.cap
        16
    """
    cap = min(d_sae, round(4 * k)) if candidates is None else candidates
    decay = round(lr_decay_fraction * training_steps)
    aux = (AuxK(min(k_aux, d_sae), normalised=False),) if aux_loss_coefficient else ()
    return Recipe(
        name="batch_topk",
        norm=RowNorm() if normalize_activations else NoNorm(),
        encoder=PreSelect(Affine(d_in, d_sae, b_pre="b_dec"), Rank(max(cap, 1), BatchRule(), by_norm=by_norm)),
        dictionary=Unit(d_sae, d_in),
        readout=Bias(d_in),
        terms=(Mse(), *aux),
        trackers=(Fired(), EmaThreshold(threshold_beta)),
        hyper=(
            ("lr", lr),
            ("k", float(k)),
            ("dead_after_tokens", dead_after_tokens),
            *((("aux_loss_coefficient", aux_loss_coefficient),) if aux_loss_coefficient else ()),
        ),
        optimizer=Adam(0.9, 0.99, clip=None),
        lr_schedule=Linear(lr_warm_up_steps, decay, training_steps),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
