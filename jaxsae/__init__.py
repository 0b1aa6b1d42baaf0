"""jaxsae: train, evaluate and use sparse autoencoders in JAX.

The names below are the front door; everything else is importable from its folder.  They load on first use, so that
`import jaxsae` stays light.

    recipe = jaxsae.recipes.topk(d_in=576, d_sae=8192, k=32)     what to train
    result = jaxsae.train.train(jaxsae.TrainConfig(...))         a whole run: cache in, dictionary out
    sae    = jaxsae.load("runs/quickstart/sae")                  an immutable SAE: sae(x), sae.encode(x), sae.decode(z)
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Public name -> the module that defines it.
_HOME = {
    "SAE": "jaxsae.sae",
    "make_sae": "jaxsae.sae",
    "Recipe": "jaxsae.recipes",
    "init": "jaxsae.recipes",
    "step": "jaxsae.recipes",
    "load": "jaxsae.io",
    "save": "jaxsae.io",
    "TrainConfig": "jaxsae.train",
    "fit": "jaxsae.train",
}
_FOLDERS: tuple[str, ...] = (
    "config",
    "data",
    "errors",
    "evals",
    "hosts",
    "io",
    "kernels",
    "objective",
    "optim",
    "parallel",
    "recipes",
)
_FOLDERS += ("report", "sae", "train", "torch", "flax")

if TYPE_CHECKING:
    from jaxsae.io import load as load
    from jaxsae.io import save as save
    from jaxsae.recipes import Recipe as Recipe
    from jaxsae.recipes import init as init
    from jaxsae.recipes import step as step
    from jaxsae.sae import SAE as SAE
    from jaxsae.sae import make_sae as make_sae
    from jaxsae.train import TrainConfig as TrainConfig
    from jaxsae.train import fit as fit

__all__ = [*_HOME, *_FOLDERS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _FOLDERS:
        return importlib.import_module(f"jaxsae.{name}")
    raise AttributeError(f"module 'jaxsae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
