"""GroupMax: the `groupmax` activation of EleutherAI's sparsify, a cheap relative of the k-sparse autoencoder."""

from jaxsae.objective import AuxK, Linear, NormalisedMse
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.defaults import aux_latents, lr_rule
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import Affine, Bias, EmaThreshold, Fired, GroupMax, NoNorm, PreSelect, RowNorm, Unit


@published
def group_max(
    d_in: int,
    d_sae: int,
    k: int = 32,
    lr: float | None = None,
    lr_warm_up_steps: int = 0,
    lr_decay_fraction: float = 0.0,
    aux_loss_coefficient: float = 1 / 32,
    k_aux: int | None = None,
    dead_after_tokens: int = 10_000_000,
    normalize_activations: bool = True,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """One latent from each of k groups (`groupmax` in EleutherAI's sparsify; no paper).

        pre = (x - b_dec) W_enc + b_enc      groups: k contiguous blocks of d_sae / k latents
        z_j = relu(pre_j) if j is the best of its group, else 0      xhat = z W_dec + b_dec
        L = ||x - xhat||^2 / var(x) + (1/32) L_aux

    An argmax per group replaces the ranking of all latents; L0 is at most k.  Latents of one group exclude each other
    for good, so the groups must not follow the order of the data: atoms start as random directions here, and atoms
    drawn from data are dealt out to the groups at random when a recipe is initialised.  k is a static number of groups:
    it cannot be swept under one program.  All else as `topk`.

    Inference: by groups.  A threshold averaged over training can be exported too, but it is another coder: latents that
    lost within their group pass it (docs/methods.md has both forms' FVU and L0).

    Expect: FVU a little above `topk` at equal k (testbed S1).  Certainty: the activation was read in sparsify's code;
    its trainer has no AuxK by default and signum instead of Adam, here they are those of `topk`.

    Args:
        d_in: width of the activations.
        d_sae: number of latents, a multiple of k.
        k: number of groups.
        lr: peak learning rate; None for 2e-4 / sqrt(d_sae / 2^14), meant for large batches.
        lr_warm_up_steps: linear warm-up.
        lr_decay_fraction: share of the run, at its end, over which the rate falls linearly to 0.
        aux_loss_coefficient: weight of AuxK; 0 removes the term.
        k_aux: dead latents used by AuxK; None for the power of two nearest to d_in / 2.
        dead_after_tokens: a latent silent for so many tokens counts as dead.
        normalize_activations: standardise each row (False: rows as they come).
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run, needed by the decay.

    Example:
        >>> group_max(d_in=16, d_sae=64, k=4).encoder.selector.groups
        4
    """
    aux = aux_latents(k_aux, d_in, d_sae)
    decay = round(lr_decay_fraction * training_steps)
    return Recipe(
        name="group_max",
        norm=RowNorm() if normalize_activations else NoNorm(),
        encoder=PreSelect(Affine(d_in, d_sae, b_pre="b_dec"), GroupMax(k)),
        dictionary=Unit(d_sae, d_in),
        readout=Bias(d_in, start="geometric_median"),
        terms=(NormalisedMse(), *((AuxK(aux),) if aux_loss_coefficient else ())),
        trackers=(Fired(), EmaThreshold()),
        hyper=(
            ("lr", lr if lr is not None else lr_rule(d_sae)),
            ("dead_after_tokens", dead_after_tokens),
            *((("aux_loss_coefficient", aux_loss_coefficient),) if aux_loss_coefficient else ()),
        ),
        optimizer=Adam(0.9, 0.999, eps=6.25e-10),
        lr_schedule=Linear(lr_warm_up_steps, decay, training_steps),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
