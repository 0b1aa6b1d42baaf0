"""An example of every registered slot member, and a small recipe around it.  Registering is enrolling."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxsae.config import load_folder, members
from jaxsae.errors import ConfigError
from jaxsae.objective import Mse
from jaxsae.recipes import Recipe, configs, topk
from jaxsae.sae import DatasetNorm, EmaThreshold, Fired, Importance, InputNorm, PreSelect, Rank
from jaxsae.testing.wholes import WHOLES

D_IN, D_SAE, K, ROWS = 12, 32, 4, 48

#: Values for required fields of member classes, by field name.
POOL: dict[str, Any] = {
    "d_in": D_IN,
    "d_out": D_IN,
    "d_sae": D_SAE,
    "cap": K,
    "k_aux": 6,
    "training_steps": 20,
    "steps": 2,
}

BASE = topk(D_IN, D_SAE, K, lr=1e-2, k_aux=6, dead_after_tokens=2 * ROWS)


def example(cls: type) -> Any:
    """An instance with defaults, required fields from `POOL`.

    Raises:
        ConfigError: a required field that POOL does not know; add it there, or give the class an `example()`.
    """
    if hasattr(cls, "example"):
        return cls.example()
    values = {}
    for f in dataclasses.fields(cls):
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            if f.name not in POOL:
                raise ConfigError(f"{cls.__name__}: the conformance suite has no value for {f.name!r}; add it to POOL")
            values[f.name] = POOL[f.name]
    return cls(**values)


def _with_term(term: Any) -> Recipe:
    known = dict(BASE.hyper)
    hyper = BASE.hyper if term.coefficient in ("", *known) else (*BASE.hyper, (term.coefficient, 0.1))
    others = tuple(t for t in BASE.terms if t.name != term.name)
    return dataclasses.replace(BASE, terms=(*others, term), hyper=hyper)


def _with_trackers(tracker: Any) -> Recipe:
    others = tuple(t for t in (Fired(), EmaThreshold()) if t.name != tracker.name)
    return dataclasses.replace(BASE, trackers=(*others, tracker))


def _with_encoder(encoder: Any) -> Recipe:
    return dataclasses.replace(BASE, encoder=PreSelect(encoder, Rank(K)))


def _with_selector(selector: Any) -> Recipe:
    """Trackers that read a threshold need a selector that reports one."""
    trackers = (Fired(), EmaThreshold()) if isinstance(selector, Rank) else (Fired(),)
    assert isinstance(BASE.encoder, PreSelect)
    encoder = dataclasses.replace(BASE.encoder, selector=selector)
    return dataclasses.replace(BASE, encoder=encoder, trackers=trackers)


def _with_transform(transform: Any) -> Recipe:
    """A transform that names trackers finds them beside it."""
    own: dict[str, Any] = {"importance": Importance(), "input_norm": InputNorm()}
    trackers = (*BASE.trackers, *(own[name] for name in getattr(transform, "tracks", ())))
    return dataclasses.replace(BASE, norm=DatasetNorm(), trackers=trackers, transforms=(transform,))


def _slot(name: str) -> Callable[[Any], Recipe]:
    return lambda member: dataclasses.replace(BASE, **{name: member})


#: How a member of each kind becomes part of a recipe.
PLACES: dict[str, Callable[[Any], Recipe]] = {
    "view": _slot("view"),
    "norm": _slot("norm"),
    "encoder": _with_encoder,
    "encode": _slot("encoder"),
    "selector": _with_selector,
    "rule": lambda rule: _with_selector(Rank(K, rule)),
    "dictionary": _slot("dictionary"),
    "readout": _slot("readout"),
    "levels": _slot("levels"),
    "term": _with_term,
    "reducer": lambda reducer: _with_term(Mse(reducer=reducer)),
    "schedule": _slot("lr_schedule"),
    "tracker": _with_trackers,
    "transform": _with_transform,
}


def enrolled() -> dict[str, Recipe]:
    """A small recipe for every registered member of every slot, by tag."""
    for package in ("jaxsae.sae", "jaxsae.objective", "jaxsae.optim", "jaxsae.recipes"):
        load_folder(package)
    POOL.setdefault("encoder", BASE.encoder.encoder)  # type: ignore[attr-defined]
    POOL.setdefault("selector", Rank(K))
    found = {}
    for kind, place in PLACES.items():
        for name, cls in members(kind).items():
            tag = f"{kind}.{name}"
            found[tag] = WHOLES[tag](BASE) if tag in WHOLES else place(example(cls))
    return found


def published(d_in: int = D_IN) -> dict[str, Recipe]:
    """Every published method at a small size, by name."""
    load_folder("jaxsae.recipes")
    small = {"d_sae": D_SAE, "k": K, "lr": 1e-2, "k_aux": 6, "dead_after_tokens": 2 * ROWS, "target_l0": K}
    recipes = {}
    for name, cls in configs().items():
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        config: Any = cls(**{k: v for k, v in small.items() if k in known})
        recipes[name] = config.build(d_in=d_in, training_steps=20)
    return recipes
