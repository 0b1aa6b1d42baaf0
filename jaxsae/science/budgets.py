"""One dictionary at many sparsities: FVU by the number of latents kept at inference."""

import numpy as np

from jaxsae.science.fleet import Trained

#: Latents kept at inference in the studies of A10 and A11.
BUDGETS = (2, 4, 8)


def fvu_at(trained: Trained, k: int) -> np.ndarray:
    """FVU of every run with k latents kept per row, [N, G]."""
    judged = trained.judge(k)
    x = np.asarray(judged.x)
    error = np.asarray(((judged.x[:, None] - judged.yhat) ** 2).sum((2, 3)))
    return error / ((x - x.mean(1, keepdims=True)) ** 2).sum((1, 2))[:, None]


def mean_log_fvu(trained: Trained) -> np.ndarray:
    """Mean over `BUDGETS` of log FVU, [N, G]; what a learning rate is tuned for where many budgets matter."""
    return np.mean([np.log(fvu_at(trained, k)) for k in BUDGETS], axis=0)
