"""Published methods by name: each recipe function gets a configuration dataclass made from its own signature."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from jaxsae.config import members, register
from jaxsae.errors import ConfigError
from jaxsae.recipes.recipe import Recipe

F = TypeVar("F", bound=Callable[..., Recipe])

#: Filled in by whoever builds the recipe, not by the config file.
RUN_TIME = ("training_steps",)


class RecipeConfig:
    """Base of the generated classes; `d_in` may stay open until the data is known, `d_sae` may be a factor of it."""

    d_in: int | None
    d_sae: int | None
    expansion_factor: int | None
    function: Callable[..., Recipe]

    def build(self, d_in: int | None = None, training_steps: int = 0) -> Recipe:
        """The recipe these arguments describe.

        Args:
            d_in: width of the activations at hand; must agree with the config's own if that has one.
            training_steps: length of the run, for schedules that end with it.

        Raises:
            ConfigError: no width, two different widths, or neither (or both) of d_sae and expansion_factor.
        """
        width, size = self._width(d_in), self.d_sae
        if size is not None and self.expansion_factor is not None and size != self.expansion_factor * width:
            raise ConfigError(
                f"recipe {self.function.__name__!r}: d_sae = {size} contradicts expansion_factor = "
                f"{self.expansion_factor} times d_in = {width}; give one of them"
            )
        if size is None:
            if self.expansion_factor is None:
                raise ConfigError(f"recipe {self.function.__name__!r}: give d_sae or expansion_factor")
            size = self.expansion_factor * width
        rest = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        for name in ("d_in", "d_sae", "expansion_factor"):
            rest.pop(name)
        if "training_steps" in inspect.signature(self.function).parameters:
            rest["training_steps"] = training_steps
        return type(self).function(d_in=width, d_sae=size, **rest)

    def _width(self, found: int | None) -> int:
        if self.d_in is not None and found is not None and self.d_in != found:
            raise ConfigError(
                f"recipe {self.function.__name__!r} has d_in = {self.d_in}, but the activations have width {found}; "
                "remove d_in from the config or use the cache it was written for"
            )
        width = self.d_in if found is None else found
        if width is None:
            raise ConfigError(
                f"recipe {self.function.__name__!r}: d_in is unknown; give it, or a cache to take it from"
            )
        return width


def published(function: F) -> F:
    """Decorator of a recipe function: enrols it, with a config class at `function.Config` tagged `recipe.<name>`.

    The function's first two arguments are d_in and d_sae; all others have the paper's defaults.
    """
    hints = get_type_hints(function)
    fields: list[Any] = [
        ("d_in", int | None, None),
        ("d_sae", int | None, None),
        ("expansion_factor", int | None, None),
    ]
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in ("d_in", "d_sae", *RUN_TIME):
            fields.append((name, hints[name], parameter.default))
    title = "".join(part.title() for part in function.__name__.split("_"))
    cls = dataclasses.make_dataclass(title, fields, frozen=True, bases=(RecipeConfig,))
    cls.__doc__, cls.__module__ = function.__doc__, function.__module__
    cls.function = staticmethod(function)  # type: ignore[attr-defined]
    function.Config = register(f"recipe.{function.__name__}")(cls)  # type: ignore[attr-defined]
    return function


def configs() -> dict[str, type[RecipeConfig]]:
    """Config classes of all published methods, by the function's name."""
    return members("recipe")
