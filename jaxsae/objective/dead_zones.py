"""Weights of a penalty from which on the best code of an ordinary row is none at all.

They follow from the length of the rows, so they are known where the input scaling fixes it: at build time.
"""

from typing import Any


def too_heavy(recipe: Any, coefficient: str, kind: str) -> list[str]:
    """A warning, with the figure, where a penalty costs more than any latent can save; [] where it does not.

        L1:  the loss ||y - z d||^2 + w z ||d|| grows from z = 0 on wherever w >= 2 ||y||      (its slope there is
             w ||d|| - 2 y . d; the largest lasso weight with a code, Tibshirani 1996)
        L0:  all latents together save at most ||y||^2, and one alone costs w

    Args:
        recipe: with an `Mse` term of weight 1, the error these bounds are made for; else nothing is known.
        coefficient: name of the scalar that holds the weight w.
        kind: "l1" or "l0".
    """
    length = getattr(recipe.norm, "length", None)
    if length is None or not any(t.name == "mse" and not t.coefficient for t in recipe.terms):
        return []
    row, w = length(recipe.dictionary.d_out), dict(recipe.hyper)[coefficient]
    bound, formula = (2 * row, "2 ||x||") if kind == "l1" else (row**2, "||x||^2")
    if w < bound:
        return []
    return [
        f"{coefficient} = {w:g} is not below {formula} = {bound:.4g}: rows of the usual length are best coded by "
        "nothing, so latents die; take a smaller one"
    ]
