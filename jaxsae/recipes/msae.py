"""MSAE: Zaigrajew, Baniecki & Biecek 2025, "Interpreting CLIP with Hierarchical Sparse Autoencoders", 2502.20578."""

from typing import Literal

from jaxsae.objective import Constant, Cosine, RowNormalisedMse
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import Affine, Bias, ByRank, Fired, PreSelect, Relu, SoftCap, Unit


@published
def msae(
    d_in: int,
    d_sae: int,
    k: int = 64,
    weighting: Literal["uniform", "reversed"] = "uniform",
    soft_cap: float | None = None,
    lr: float = 1e-4,
    dead_after_tokens: int = 10_000_000,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """Matryoshka SAE over ranks (Zaigrajew et al. 2025, 2502.20578): one coder at every sparsity up to dense.

        z_i = cap(relu(TopK_{k_i}(pre)))     k_i = k, 2k, 4k, ..., d_sae     xhat_i = z_i W_dec + b_dec
        L = sum_i a_i mean_B ||x - xhat_i||^2 / ||x - mean||^2 / sum_i a_i

    a is uniform (UW) or h, h-1, ..., 1 (RW, most weight on the sparsest level).  The levels are over the ranks of each
    row, not over prefixes of latents (`matryoshka`).  cap(v) = c tanh(v / c) is off by default, as in the authors'
    configuration.  b_dec starts at the mean; the mean in the denominator is that of the batch, where the authors
    subtract that of the data set beforehand.  Adam with eps 6.25e-10, gradient norm clipped at 1, the rate falls to
    0 over the whole run by half a cosine.  Codes are dense: the cost is that of one dense decode per level and one sort
    of the codes.

    Inference: all positive latents, or the k best for any k (`sae.at_k`).

    Expect: one coder better than TopK coders used away from their own k (testbed S1), cosine similarity near 1 with all
    positive latents on embeddings.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        k: the sparsest level; each next one doubles it, the last is d_sae.
        weighting: of the levels.
        soft_cap: c of the cap (30 in the authors' class); None for no cap.
        lr: peak learning rate.
        dead_after_tokens: a latent silent for so many tokens is reported as dead.
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run, needed by the decay; 0 for a constant rate.

    Example:
        >>> msae(d_in=16, d_sae=100, k=16, weighting="reversed").levels
        ByRank(counts=(16, 32, 64, 100), of_k=False, longest=0, weights=(4.0, 3.0, 2.0, 1.0), summed=False)
    """
    counts = [k]
    while counts[-1] < d_sae and k > 0:
        counts.append(min(2 * counts[-1], d_sae))
    weights = tuple(float(len(counts) - i) for i in range(len(counts))) if weighting == "reversed" else ()
    return Recipe(
        name="msae",
        encoder=PreSelect(
            Affine(d_in, d_sae, b_pre="b_dec"), Relu() if soft_cap is None else SoftCap(Relu(), soft_cap)
        ),
        dictionary=Unit(d_sae, d_in),
        readout=Bias(d_in, start="mean"),
        levels=ByRank(tuple(counts), weights=weights),
        terms=(RowNormalisedMse(),),
        trackers=(Fired(),),
        hyper=(("lr", lr), ("dead_after_tokens", dead_after_tokens)),
        optimizer=Adam(0.9, 0.999, eps=6.25e-10),
        lr_schedule=Cosine(training_steps) if training_steps else Constant(),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
