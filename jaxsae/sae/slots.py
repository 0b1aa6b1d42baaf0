"""The slots a method is made of.  Each member is a frozen dataclass of hyper-parameters with pure methods.

Its arrays live outside it, in one flat dict of uniquely named leaves.  `axes` gives the axis letters of its leaves
("." = internal): from that one table come the sharding, the axis of a permutation or reset, and the shape check on
load.  `fixed` names leaves that are saved but not trained.  Nothing is subclassed; a Protocol only documents.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from jaxsae.sae.codes import Codes
from jaxsae.sae.records import Ctx, Out, Pre, Rows, Selection, Want
from jaxsae.typing import Batch, Params, PyTree

Axes = Mapping[str, str]


class View(Protocol):
    """Turns a batch of a source into rows."""

    def __call__(self, batch: Batch, frozen: PyTree) -> Rows: ...


class Norm(Protocol):
    """Input scaling.  `foldable` says whether export can absorb it into the weights."""

    foldable: bool
    axes: Axes
    fixed: tuple[str, ...]

    def init(self, rows: Rows) -> Params: ...
    def inputs(self, p: Params, x: jax.Array) -> jax.Array: ...
    def targets(self, p: Params, y: jax.Array, x: jax.Array) -> jax.Array: ...
    def undo(self, p: Params, y: jax.Array, x: jax.Array) -> jax.Array: ...
    def fold(self, p: Params, leaves: Params) -> Params: ...


class Dictionary(Protocol):
    """Atoms: [S, E] directions that codes weigh."""

    d_sae: int
    d_out: int
    axes: Axes
    fixed: tuple[str, ...]

    def init(self, key: jax.Array, rows: Rows, p: Params) -> Params: ...
    def atoms(self, p: Params) -> jax.Array: ...
    def decode(self, p: Params, codes: Codes) -> jax.Array: ...
    def norms(self, p: Params) -> jax.Array: ...
    def tangent(self, p: Params, grads: Params) -> Params: ...
    def project(self, p: Params) -> Params: ...


class Readout(Protocol):
    """What is added to the decoded codes."""

    axes: Axes

    def init(self, rows: Rows) -> Params: ...
    def base(self, p: Params, x: jax.Array | None) -> jax.Array: ...


class Encoder(Protocol):
    """x -> scores and values of every latent.  `affine` is optional: having it allows the fused pass."""

    d_in: int
    d_sae: int
    axes: Axes

    def init(self, key: jax.Array, rows: Rows, p: Params, D: Dictionary) -> Params: ...
    def pre(self, p: Params, x: jax.Array, D: Dictionary, ctx: Ctx) -> Pre: ...


class Selector(Protocol):
    """(score, support, value) -> codes.  `forms` lists the inference forms it can take, preferred first."""

    axes: Axes
    fixed: tuple[str, ...]
    may_miss: bool
    forms: tuple[str, ...]

    def init(self, key: jax.Array, d_sae: int) -> Params: ...
    def select(self, p: Params, pre: Pre, D: Dictionary, ctx: Ctx, want: Want) -> Selection: ...
    def frozen(
        self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str
    ) -> tuple["Selector", Params]: ...


class Encode(Protocol):
    """The whole way from x to codes.  The ordinary member is `PreSelect(encoder, selector)`; pursuit is another."""

    d_in: int
    d_sae: int
    axes: Axes
    fixed: tuple[str, ...]
    may_miss: bool
    forms: tuple[str, ...]

    def init(self, key: jax.Array, rows: Rows, p: Params, D: Dictionary) -> Params: ...
    def can_fuse(self, want: Want) -> bool: ...
    def encode(self, p: Params, x: jax.Array, D: Dictionary, ctx: Ctx, want: Want, fused: bool) -> Selection: ...
    def frozen(self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str) -> tuple["Encode", Params]: ...


class Levels(Protocol):
    """Squared errors of nested reconstructions.  `ranks` asks the selector for a longer ranked list."""

    ranks: int

    def read(self, out: Out, e0: jax.Array, ctx: Ctx) -> tuple[jax.Array, jax.Array]: ...


class Tracker(Protocol):
    """State that no gradient touches.  `observe` runs inside the loss and returns small arrays only."""

    name: str
    axes: Axes

    def init(self, d_sae: int) -> PyTree: ...
    def observe(self, out: Out, ctx: Ctx) -> PyTree: ...
    def update(self, own: PyTree, observed: PyTree, ctx: Ctx) -> PyTree: ...


class Transform(Protocol):
    """Runs after the optimiser, at its own cadence: (recipe, state, ctx) -> state."""

    def __call__(self, recipe: Any, state: Any, ctx: Ctx) -> Any: ...
