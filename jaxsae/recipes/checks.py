"""What is refused when a recipe is built: impossible combinations, each with its reason.

General rules stand here.  What only one member knows it says itself, by optional attributes that every member of a
recipe is asked for: `reads` (swept scalars), `tracks` (trackers), and `review(recipe)`, which raises `ConfigError` or
returns warnings.
"""

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxsae.errors import ConfigError, ConfigWarning

if TYPE_CHECKING:
    from jaxsae.recipes.recipe import Recipe

#: Where members sit: slots of the recipe, and members inside members.
SLOTS = ("view", "norm", "encoder", "dictionary", "readout", "levels", "terms", "trackers", "transforms")
INSIDE = ("encoder", "selector", "inner", "rule", "dictionary")


def check(recipe: "Recipe") -> None:
    """Refuses impossible combinations when the recipe is built.

    Raises:
        ConfigError: naming the slot and the value.
    """
    if "lr" not in dict(recipe.hyper):
        raise ConfigError(f"recipe {recipe.name!r}: hyper needs a learning rate 'lr'")
    if recipe.encoder.d_sae != recipe.d_sae:
        raise ConfigError(
            f"recipe {recipe.name!r}: the encoder has {recipe.encoder.d_sae} latents, the dictionary {recipe.d_sae}"
        )
    cap = getattr(getattr(recipe.encoder, "selector", None), "cap", None)
    if cap is not None and not 0 < cap <= recipe.d_sae:
        raise ConfigError(f"recipe {recipe.name!r}: k must lie between 1 and d_sae = {recipe.d_sae}, found {cap}")
    _check_leaves(recipe)
    _check_range(recipe)
    _check_k(recipe, cap)
    _check_terms(recipe)
    for member in parts(recipe):
        _check_member(recipe, member)


def _check_leaves(recipe: "Recipe") -> None:
    owner: dict[str, str] = {}
    for slot in ("norm", "readout", "dictionary", "encoder"):
        for name in getattr(recipe, slot).axes:
            if name in owner:
                raise ConfigError(
                    f"recipe {recipe.name!r}: {owner[name]} and {slot} both own the leaf {name!r}; choose an "
                    f"{slot} that reads the one of the {owner[name]}"
                )
            owner[name] = slot


def _check_range(recipe: "Recipe") -> None:
    """Whole scalars become int32, as the count of tokens since a latent was on is, which stops at 2**30."""
    for name, value in recipe.hyper:
        if isinstance(value, int) and abs(value) >= 2**31:
            raise ConfigError(
                f"recipe {recipe.name!r}: {name} = {value} is beyond 32 bits; expected at most {2**31 - 1}"
            )
        if not math.isfinite(value) or (name == "lr" and value < 0):
            expected = "a finite number, 0 or more" if name == "lr" else "a finite number"
            raise ConfigError(f"recipe {recipe.name!r}: expected {name} to be {expected}, found {value}")


def _check_k(recipe: "Recipe", cap: int | None) -> None:
    hyper = dict(recipe.hyper)
    selector = getattr(recipe.encoder, "selector", None)
    most = cap if cap is not None and getattr(getattr(selector, "rule", None), "per_row", False) else recipe.d_sae
    if not 0 < hyper.get("k", 1) <= most:
        raise ConfigError(f"recipe {recipe.name!r}: k = {hyper['k']} does not fit the {most} candidates of a row")
    for name, _ in recipe.annealed:
        if name not in hyper or name == "lr":
            possible = ", ".join(sorted(set(hyper) - {"lr"}))
            raise ConfigError(f"recipe {recipe.name!r}: cannot anneal {name!r}; possible: {possible}")
    largest = hyper.get("k", 1) * max([getattr(s, "start", 1.0) for n, s in recipe.annealed if n == "k"], default=1.0)
    if round(largest) > most:
        raise ConfigError(
            f"recipe {recipe.name!r}: annealed k starts at {largest:g}, which does not fit the {most} candidates of a "
            "row; raise the cap of the selector or start lower"
        )


def _check_terms(recipe: "Recipe") -> None:
    hyper, seen = dict(recipe.hyper), set[str]()
    for term in recipe.terms:
        if term.name in seen:
            raise ConfigError(f"recipe {recipe.name!r}: two terms are called {term.name!r}; each is logged by its name")
        seen.add(term.name)
        if term.coefficient and term.coefficient not in hyper:
            raise ConfigError(f"recipe {recipe.name!r}: term {term.name!r} needs {term.coefficient!r} in hyper")
        if term.k_aux == 0 and "k_aux" in getattr(term, "__dataclass_fields__", ()):
            raise ConfigError(
                f"recipe {recipe.name!r}: term {term.name!r}: k_aux must be at least 1, found 0; leave the term out "
                "by a coefficient of 0"
            )
        if not 0 <= term.k_aux <= recipe.d_sae:
            raise ConfigError(
                f"recipe {recipe.name!r}: k_aux must lie between 0 and d_sae = {recipe.d_sae}, found {term.k_aux}"
            )
    selector: Any = getattr(recipe.encoder, "selector", recipe.encoder)
    for term in recipe.terms:
        for need in term.needs:
            if need != "pre" and need not in getattr(selector, "gives", ()):
                raise ConfigError(
                    f"recipe {recipe.name!r}: term {term.name!r} needs {need!r}, which {type(selector).__name__} does "
                    "not give"
                )
    drawing = [t for t in recipe.terms if t.k_aux]
    pools = {getattr(t, "pool", None) for t in drawing}
    if len(pools) > 1:
        names = " and ".join(repr(t.name) for t in drawing)
        raise ConfigError(
            f"recipe {recipe.name!r}: the terms {names} revive different sets of latents, but a step makes one "
            "auxiliary selection; keep one of them"
        )
    if pools == {None} and ("fired" not in _trackers(recipe) or "dead_after_tokens" not in hyper):
        raise ConfigError(
            f"recipe {recipe.name!r}: term {drawing[0].name!r} revives dead latents, which needs the tracker 'fired' "
            "and 'dead_after_tokens' in hyper"
        )


def _check_member(recipe: "Recipe", member: Any) -> None:
    what = type(member).__name__
    for name in getattr(member, "reads", ()):
        if name not in dict(recipe.hyper):
            raise ConfigError(f"recipe {recipe.name!r}: {what} needs {name!r} in hyper")
    for name in getattr(member, "tracks", ()):
        if name not in _trackers(recipe):
            raise ConfigError(f"recipe {recipe.name!r}: {what} needs the tracker {name!r}")
    for message in member.review(recipe) if hasattr(member, "review") else ():
        warnings.warn(f"recipe {recipe.name!r}: {message}", ConfigWarning, stacklevel=5)


def _trackers(recipe: "Recipe") -> list[str]:
    return [t.name for t in recipe.trackers]


def parts(recipe: "Recipe") -> Iterator[Any]:
    """Every member of a recipe, those inside other members too."""
    waiting: list[Any] = []
    for slot in SLOTS:
        found = getattr(recipe, slot)
        waiting += found if isinstance(found, tuple) else [found]
    while waiting:
        member = waiting.pop(0)
        yield member
        inner = (getattr(member, name, None) for name in INSIDE)
        waiting += [m for m in inner if hasattr(m, "__dataclass_fields__")]
