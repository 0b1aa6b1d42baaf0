"""Matryoshka with random prefixes: Noa Nabeshima 2024, "Matryoshka Sparse Autoencoders" (LessWrong) and its code."""

from typing import Literal

from jaxsae.objective import Linear, Mse, PrefixPenalty
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.cadence import PermuteByImportance, RunningScale
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import (
    Affine,
    Bias,
    DatasetNorm,
    Fired,
    Free,
    Importance,
    InputNorm,
    L0Controller,
    PreSelect,
    RandomPrefixes,
    Relu,
)


@published
def matryoshka_random(
    d_in: int,
    d_sae: int,
    target_l0: float = 32.0,
    prefixes: int = 10,
    penalty: Literal["l1", "log"] = "l1",
    l1_coefficient: float = 1.2,
    lr: float = 3e-2,
    l1_warm_up_fraction: float = 0.2,
    lr_warm_up_steps: int = 100,
    lr_decay_fraction: float = 0.2,
    controller_rate: float = 3e-4,
    permute_every: int = 100,
    dead_after_tokens: int = 10_000_000,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """Matryoshka with prefixes drawn at every step (Nabeshima 2024; checked against the author's code).

        z = relu(x W_enc + b_enc)      xhat_r = z[:, :n_r] W_dec[:n_r] + b_dec
        L = mean_r mean_B ||x - xhat_r||^2 + s mean_r mean_B sum_{j < n_r} f(z_j ||d_j||)

    n_r: see `sae.RandomPrefixes`.  f is the identity or log(a + 0.1) - log 0.1.  s rises linearly over the first fifth
    of the run; from then on a controller multiplies it by 1 +- `controller_rate` per step towards `target_l0`.  Inputs
    are scaled to norm sqrt(d_in) by a running mean.  Adam (0.5, 0.9375), gradient norm clipped at 1, rate up over 100
    steps and down to a tenth over the last fifth.  W_enc starts with columns of norm 1, W_dec as their transpose
    times 0.1.

    Three things differ on purpose.  The running means are debiased (the author's norm starts from zero).  Latents are
    sorted by importance every `permute_every` steps instead of every step, and their moments and counters move with
    them (in the author's code the moments stay behind).  The first scale is measured on the sample given to `init`.

    Inference: as trained (a threshold at 0); any prefix by `sae.at_prefix`.

    Expect: on the tree of testbed S2 parents and children are recovered where a plain coder absorbs, and latents come
    in order of importance.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        target_l0: mean number of latents per row that the controller aims at.
        prefixes: levels per step, the full one included; no more than d_sae.
        penalty: f.
        l1_coefficient: s at the end of its warm-up.
        lr: peak learning rate.
        l1_warm_up_fraction: share of the run over which s rises, and after which the controller acts.
        lr_warm_up_steps: linear warm-up of the rate.
        lr_decay_fraction: share of the run, at its end, over which the rate falls to a tenth.
        controller_rate: relative change of s per step.
        permute_every: steps between two sorts; 0 for never.
        dead_after_tokens: a latent silent for so many tokens is reported as dead.
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run, needed by the schedules.

    Example:
        >>> matryoshka_random(d_in=16, d_sae=64, target_l0=8, prefixes=5).levels.number
        5
    """
    warm_up, decay = round(l1_warm_up_fraction * training_steps), round(lr_decay_fraction * training_steps)
    sort = (PermuteByImportance(permute_every),) if permute_every else ()
    return Recipe(
        name="matryoshka_random",
        norm=DatasetNorm(),
        encoder=PreSelect(Affine(d_in, d_sae, start="unit"), Relu()),
        dictionary=Free(d_sae, d_in, init_norm=0.1),
        readout=Bias(d_in),
        levels=RandomPrefixes(d_sae, min(prefixes, d_sae)),
        terms=(Mse(), PrefixPenalty(schedule=Linear(warm_up), form=penalty, controller="l0_controller")),
        trackers=(Fired(), Importance(), InputNorm(), L0Controller(controller_rate, warm_up)),
        transforms=(RunningScale(), *sort),
        hyper=(
            ("lr", lr),
            ("l1_coefficient", l1_coefficient),
            ("target_l0", float(target_l0)),
            ("dead_after_tokens", dead_after_tokens),
        ),
        optimizer=Adam(0.5, 0.9375),
        lr_schedule=Linear(lr_warm_up_steps, decay, training_steps, end=0.1),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
