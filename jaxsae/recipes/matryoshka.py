"""Matryoshka BatchTopK: Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka SAEs", 2503.17547."""

from dataclasses import replace

from jaxsae.errors import ConfigError
from jaxsae.recipes.batch_topk import batch_topk
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import ByPrefix


@published
def matryoshka(
    d_in: int,
    d_sae: int,
    k: float = 32.0,
    fractions: tuple[float, ...] = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2),
    bias_level: bool = True,
    level_weights: tuple[float, ...] = (),
    lr: float = 3e-4,
    lr_warm_up_steps: int = 0,
    lr_decay_fraction: float = 0.0,
    aux_loss_coefficient: float = 1 / 32,
    k_aux: int = 512,
    dead_after_tokens: int = 81_920,
    threshold_beta: float = 0.99,
    candidates: int | None = None,
    normalize_activations: bool = False,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """Matryoshka BatchTopK (Bussmann et al. 2025, 2503.17547): the first latents must reconstruct by themselves.

        z = BatchTopK(pre), once over all latents      xhat_r = z[:, :n_r] W_dec[:n_r] + b_dec
        L = mean over levels of mean_B ||x - xhat_r||^2 + (1/32) AuxK on the full reconstruction

    Defaults are those of the authors' code: groups of 1/16, 1/16, 1/8, 1/4 and 1/2 of the latents, the reconstruction
    by the bias alone counted as one more level, rows as they come, a latent dead after 20 batches of 4096.  The first
    group appears in every level, so its gradient is that of all of them.  Everything else as in `batch_topk`.

    Inference: thresholds, for all latents or for any prefix (`sae.at_prefix`).

    Expect: less absorption than BatchTopK at equal L0 (testbed S2: parent latents sit in the first groups), and a
    slightly worse FVU of the full reconstruction.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        k: latents per row on average.
        fractions: sizes of the groups as shares of d_sae; they sum to 1.
        bias_level: count the reconstruction by the bias alone as a level.
        level_weights: of the levels, the bias level first; () for equal ones.
        lr: peak learning rate.
        lr_warm_up_steps: linear warm-up.
        lr_decay_fraction: share of the run, at its end, over which the rate falls linearly to 0.
        aux_loss_coefficient: weight of AuxK; 0 removes the term.
        k_aux: dead latents used by AuxK, no more than d_sae.
        dead_after_tokens: a latent silent for so many tokens counts as dead.
        threshold_beta: decay of the running mean of the threshold.
        candidates: latents each row offers; None for 4 k.
        normalize_activations: standardise each row.
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run, needed by the decay.

    Raises:
        ConfigError: fractions that do not sum to 1 or make an empty group.

    Example:
        >>> matryoshka(d_in=16, d_sae=64, k=4).levels.lengths
        (4, 8, 16, 32, 64)
    """
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"matryoshka: fractions of d_sae must be above 0 and sum to 1, found {fractions}")
    lengths = tuple(round(d_sae * sum(fractions[: i + 1])) for i in range(len(fractions)))
    base = batch_topk(
        d_in, d_sae, k, lr, lr_warm_up_steps, lr_decay_fraction, aux_loss_coefficient, k_aux, dead_after_tokens,
        threshold_beta, candidates, False, normalize_activations, bfloat16, average_decay, training_steps,
    )  # fmt: skip
    return replace(base, name="matryoshka", levels=ByPrefix(lengths, bias_level, level_weights))
