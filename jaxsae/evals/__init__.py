"""What is measured about a dictionary: any trained, exported or loaded `SAE`, never a recipe.

metrics          streaming, mergeable sums behind L0, FVU, explained variance, cosine, dead share, density
reconstruction   those metrics over a cache split or any batches
loss_recovered   cross-entropy of the host with the site reconstructed or ablated
features         contexts, quantiles, promoted tokens of single latents
evaluate         the standard evaluation, as one dict
ground_truth     learned atoms and codes against those of a testbed
frontier         an error at equal L0, and the area under a frontier
baselines        PCA, ICA, NMF, k-means, random directions as an `SAE`
"""

from jaxsae.evals.baselines import BASELINES, fit_baseline
from jaxsae.evals.evaluate import EvalConfig, evaluate
from jaxsae.evals.features import Feature, FeaturesConfig, features
from jaxsae.evals.loss_recovered import Windows, loss_recovered, windows
from jaxsae.evals.reconstruction import reconstruction

__all__ = [
    "BASELINES",
    "EvalConfig",
    "Feature",
    "FeaturesConfig",
    "Windows",
    "evaluate",
    "features",
    "fit_baseline",
    "loss_recovered",
    "reconstruction",
    "windows",
]
