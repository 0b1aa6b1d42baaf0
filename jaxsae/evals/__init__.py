"""What is measured about a dictionary: any trained, exported or loaded `SAE`, never a recipe.

metrics          streaming, mergeable sums behind L0, FVU, explained variance, cosine, dead share, density
reconstruction   those metrics over a cache split or any batches
loss_recovered   cross-entropy of the host with the site reconstructed or ablated
features         contexts, quantiles, promoted tokens of single latents
evaluate         the standard evaluation, as one dict
"""

from jaxsae.evals.evaluate import EvalConfig, evaluate
from jaxsae.evals.features import Feature, FeaturesConfig, features
from jaxsae.evals.loss_recovered import Windows, loss_recovered, windows
from jaxsae.evals.reconstruction import reconstruction

__all__ = [
    "EvalConfig",
    "Feature",
    "FeaturesConfig",
    "Windows",
    "evaluate",
    "features",
    "loss_recovered",
    "reconstruction",
    "windows",
]
