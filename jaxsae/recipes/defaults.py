"""Defaults that several published methods share."""

import math


def lr_rule(d_sae: int) -> float:
    """2e-4 / sqrt(d_sae / 2^14): the learning rate of Gao et al. 2024 (2406.04093), meant for large batches."""
    return 2e-4 / math.sqrt(d_sae / 2**14)


def aux_latents(k_aux: int | None, d_in: int, d_sae: int) -> int:
    """k_aux, or the power of two nearest to d_in / 2 (Gao et al. 2024); at most d_sae.

    0 stays 0: a term that revives no latent is refused when the recipe is built.
    """
    return min(d_sae, 2 ** round(math.log2(max(d_in / 2, 1))) if k_aux is None else k_aux)
