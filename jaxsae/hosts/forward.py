"""The forward pass that all decoders share: which blocks run, what is read, what is replaced, where it stops.

Blocks whose inside nobody changes run in `lax.scan` over their stacked weights, in stretches in which every block
gives back the same sites.  A block with an edit inside it is run by itself ("opened"), and an edit of the residual
stream ends a stretch.  So the usual run (one site of one layer) compiles a single block.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsae.errors import HostError
from jaxsae.hosts.sites import RESIDUAL, Site, parse

Edit = Callable[[Array], Array]
At = Callable[[str, Array], Array]


class Run(NamedTuple):
    """What a forward pass gives back.

    Attributes:
        logits: [B, T, V] float32, or None where they were not asked for.
        taps: the activation of each site asked for, [B, T, width], under the name by which it was asked for.
    """

    logits: Array | None
    taps: dict[str, Array]


class Blocks(Protocol):
    """What a decoder has to offer to be run here; weights are stacked, [n_layers, ...], under `params["blocks"]`."""

    @property
    def n_layers(self) -> int: ...

    def embed(self, params: Any, tokens: Any) -> Array:
        """Tokens [B, T] -> residual stream [B, T, d_model]."""
        ...

    def block(self, weights: Any, x: Array, at: At, start: str = "resid_pre") -> Array:
        """One block from `start`; every inner activation passes through `at(point, value)`, which may replace it."""
        ...

    def unembed(self, params: Any, x: Array) -> Array:
        """Residual stream [..., d_model] -> logits [..., V]."""
        ...


def run(
    model: Blocks,
    params: Any,
    tokens: Array | None,
    *,
    taps: Iterable[str] = (),
    edits: Mapping[str, Edit] | None = None,
    logits: bool = True,
    resume: tuple[str, Array] | None = None,
) -> Run:
    """See `Llama.run`."""
    walk = _Walk(model, params, taps, edits, resume)
    first, last = walk.start, walk.last_tap
    x = model.embed(params, tokens) if resume is None else resume[1]
    if not logits and last is None:
        return Run(None, {})
    before = not logits and last is not None and last.point == "resid_pre"  # the tap needs nothing of its own block
    end = model.n_layers if logits or last is None else last.layer + (not before)
    layer = first.layer
    if first.point == "resid_mid":
        x = walk.opened(layer, walk.visit(first, x), start="resid_mid")
    if first.point != "resid_pre":
        x = walk.visit(Site(layer, "resid_post"), x)
        layer += 1
    while layer < end:
        x = walk.visit(Site(layer, "resid_pre"), x)
        if walk.edited_inside(layer):
            x, layer = walk.opened(layer, x), layer + 1
        else:
            x, layer = walk.stretch(layer, end, x)
        x = walk.visit(Site(layer - 1, "resid_post"), x)
    if before:
        walk.visit(Site(end, "resid_pre"), x)
    return Run(model.unembed(params, x) if logits else None, {n: walk.seen[s] for n, s in walk.wanted.items()})


class _Walk:
    """One forward pass under way: the parsed request, and the activations read so far."""

    def __init__(
        self,
        model: Blocks,
        params: Any,
        taps: Iterable[str],
        edits: Mapping[str, Edit] | None,
        resume: tuple[str, Array] | None,
    ):
        if isinstance(taps, str):
            taps = (taps,)
        self.model, self.params = model, params
        self.wanted = {name: parse(name, model.n_layers) for name in taps}
        self.tapped = set(self.wanted.values())
        self.edits: dict[Site, Edit] = {}
        for name, edit in (edits or {}).items():
            site = parse(name, model.n_layers)
            if site in self.edits:
                raise HostError(f"site {site.name!r} is edited twice, under two names; join the two edits into one")
            self.edits[site] = edit
        self.start = Site(0, "resid_pre") if resume is None else parse(resume[0], model.n_layers)
        self.last_tap = max(self.tapped, key=lambda site: site.rank, default=None)
        self.seen: dict[Site, Array] = {}
        self._check_start()

    def _check_start(self) -> None:
        if self.start.point not in RESIDUAL:
            raise HostError(
                f"a run cannot resume at {self.start.name!r}: expected a residual site (hook_resid_pre, _mid or _post)"
            )
        early = [site.name for site in (*self.tapped, *self.edits) if site.rank < self.start.rank]
        if early:
            raise HostError(
                f"site {early[0]!r} lies before {self.start.name!r}, where this run resumes, and is never computed; "
                "resume earlier or drop it"
            )

    def visit(self, site: Site, value: Array) -> Array:
        """Lets the edit of a site replace its value, and keeps the value if the site is tapped."""
        if site in self.edits:
            new = self.edits[site](value)
            if jnp.shape(new) != value.shape:
                raise HostError(f"the edit of {site.name!r} returned shape {jnp.shape(new)}, expected {value.shape}")
            value = jnp.asarray(new, value.dtype)
        if site in self.tapped:
            self.seen[site] = value
        return value

    def edited_inside(self, layer: int) -> bool:
        return any(site.layer == layer and site.point not in ("resid_pre", "resid_post") for site in self.edits)

    def opened(self, layer: int, x: Array, start: str = "resid_pre") -> Array:
        """One block by itself, with its edits."""
        weights = _weights_of(self.params, layer)
        return self.model.block(weights, x, lambda point, value: self.visit(Site(layer, point), value), start)

    def stretch(self, first: int, end: int, x: Array) -> tuple[Array, int]:
        """Blocks from `first` on for as long as they are alike; returns the stream and the block that comes next."""
        stop = first + 1
        while stop < end and self._alike(first, stop):
            stop += 1
        points = self._inner_taps(first)
        emit_stream = stop - first > 1 and self._border_tapped(first + 1)
        block = _remembering_products(
            lambda layer, x: self._block(layer, x, points, emit_stream), scanned=stop > first + 1
        )
        if stop == first + 1:
            x, got = block(first, x)
            got = {point: value[None] for point, value in got.items()}
        else:
            x, got = lax.scan(lambda x, layer: block(layer, x), x, jnp.arange(first, stop))
        self._keep(got, first, stop)
        return x, stop

    def _block(self, layer: Array | int, x: Array, points: Sequence[str], emit_stream: bool) -> tuple[Array, dict]:
        got: dict[str, Array] = {}

        def at(point: str, value: Array) -> Array:
            if point in points:
                got[point] = value
            return value

        x = self.model.block(_weights_of(self.params, layer), x, at)
        if emit_stream:
            got["resid_post"] = x
        return x, got

    def _keep(self, got: Mapping[str, Array], first: int, stop: int) -> None:
        for point, values in got.items():
            for i, layer in enumerate(range(first, stop)):
                if point != "resid_post":
                    self.visit(Site(layer, point), values[i])
                elif layer + 1 < stop:  # the last border belongs to the caller
                    self.visit(Site(layer, "resid_post"), values[i])
                    self.visit(Site(layer + 1, "resid_pre"), values[i])

    def _alike(self, first: int, layer: int) -> bool:
        """May `layer` join the stretch that begins at `first`?"""
        border = (Site(layer - 1, "resid_post"), Site(layer, "resid_pre"))
        return (
            not any(site in self.edits for site in border)
            and not self.edited_inside(layer)
            and self._inner_taps(layer) == self._inner_taps(first)
            and self._border_tapped(layer) == self._border_tapped(first + 1)
        )

    def _inner_taps(self, layer: int) -> tuple[str, ...]:
        return tuple(
            sorted(s.point for s in self.tapped if s.layer == layer and s.point not in ("resid_pre", "resid_post"))
        )

    def _border_tapped(self, layer: int) -> bool:
        return Site(layer - 1, "resid_post") in self.tapped or Site(layer, "resid_pre") in self.tapped


def _weights_of(params: Any, layer: Array | int) -> Any:
    """One block's weights.  Indexed inside the scan, because slicing a stretch off the stack would copy it."""
    return jax.tree.map(lambda w: lax.dynamic_index_in_dim(w, layer, keepdims=False), params["blocks"])


def _remembering_products(block: Callable, scanned: bool) -> Callable:
    """For gradients: keep matrix products for the backward pass and recompute the rest.

    Without this the backward pass of a scan would keep a copy of every block's weights.
    """
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(block, policy=policy, prevent_cse=not scanned, static_argnums=() if scanned else (0,))
