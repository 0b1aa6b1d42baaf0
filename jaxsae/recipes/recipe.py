"""A recipe: slots filled in, and the pure functions that train them."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae import objective
from jaxsae.config import register
from jaxsae.errors import ConfigError, closest
from jaxsae.kernels._control import unless
from jaxsae.objective import Constant, Schedule, Term
from jaxsae.optim import Adam, Optimizer, Precision
from jaxsae.optim.move import move
from jaxsae.recipes.checks import check
from jaxsae.recipes.state import State
from jaxsae.sae import SAE, Ctx, Identity, Meta, NoNorm, One, Out, Rows, Want, freeze
from jaxsae.sae.levels import reads_atoms
from jaxsae.sae.slots import Dictionary, Encode, Levels, Norm, Readout, Tracker, Transform, View
from jaxsae.typing import Batch, Params, PyTree

TINY = 1e-12
#: Nested levels are logged one by one up to this many.
LOGGED_LEVELS = 16


@register("recipe")
@dataclass(frozen=True)
class Recipe:
    """A method, filled slot by slot: static, printable, hashable, and YAML through `jaxsae.config`.

    Its methods are pure functions of a `State`; jit, vmap and shard them in any loop.  Coefficients, learning rate, k
    and every other swept scalar live in `state.hyper`, starting from the (name, value) pairs in `hyper`.  The (name,
    schedule) pairs in `annealed` multiply such a scalar by a factor while training; inference uses the scalar itself.

    Example:
        >>> from jaxsae.recipes import init, step, topk
        >>> recipe = topk(d_in=8, d_sae=32, k=4)
        >>> batch = {"x": jax.random.normal(jax.random.key(1), (64, 8))}
        >>> state = init(recipe, jax.random.key(0), batch)
        >>> state, metrics = step(recipe, state, batch)
        >>> recipe.export(state).d_sae
        32
    """

    name: str
    encoder: Encode
    dictionary: Dictionary
    readout: Readout
    terms: tuple[Term, ...]
    hyper: tuple[Any, ...]
    view: View = Identity()
    norm: Norm = NoNorm()
    levels: Levels = One()
    trackers: tuple[Tracker, ...] = ()
    transforms: tuple[Transform, ...] = ()
    optimizer: Optimizer = Adam()
    lr_schedule: Schedule = Constant()
    precision: Precision = Precision()
    average_decay: float | None = None
    annealed: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        check(self)

    # ------------------------------------------------------------------------------------------ static facts
    @property
    def want(self) -> Want:
        """What terms and levels need from the encoding; decides the path at trace time."""
        needs = [n for t in self.terms for n in t.needs]
        return Want("pre" in needs, max([t.k_aux for t in self.terms], default=0), self.levels.ranks)

    @property
    def d_in(self) -> int:
        return self.encoder.d_in

    @property
    def d_sae(self) -> int:
        return self.dictionary.d_sae

    @property
    def axes(self) -> dict[str, str]:
        """Axis letters of every parameter leaf."""
        return {**self.encoder.axes, **self.dictionary.axes, **self.readout.axes, **self.norm.axes}

    @property
    def fixed(self) -> frozenset[str]:
        """Leaves that are saved but not trained."""
        readout = getattr(self.readout, "fixed", ())
        return frozenset((*self.encoder.fixed, *self.dictionary.fixed, *readout, *self.norm.fixed))

    def split(self, p: Params) -> tuple[Params, Params]:
        """(trained leaves, fixed leaves)."""
        fixed = self.fixed
        return {k: v for k, v in p.items() if k not in fixed}, {k: v for k, v in p.items() if k in fixed}

    # ------------------------------------------------------------------------------------------ init
    def init(self, key: jax.Array, batch: Batch, frozen: PyTree = (), **hyper: Any) -> State:
        """A fresh state; data-dependent parts are measured on `batch`.

        Jit it (as `jaxsae.recipes.init` does): eagerly, equal zero leaves may share a buffer, which donation
        forbids.

        Args:
            key: random key; also the key of the run.
            batch: a sample of the data, as the source gives it.
            frozen: arrays from outside (a host, a frozen coder) that the view reads.
            **hyper: other values for swept scalars.

        Raises:
            ConfigError: a scalar this recipe does not have, or a batch of another width.
        """
        rows = self._rows(self.view(batch, frozen))
        p: Params = dict(self.norm.init(rows))
        rows = self._normalised(p, rows)
        k_dict, k_enc, k_run = jax.random.split(key, 3)
        _merge(p, self.readout.init(rows))
        _merge(p, self.dictionary.init(k_dict, rows, p))
        _merge(p, self.encoder.init(k_enc, rows, p, self.dictionary))
        p = self._dealt(k_dict, p)
        train = self.split(p)[0]
        state = State(
            params=p,
            track={t.name: t.init(self.d_sae) for t in self.trackers},
            opt=self.optimizer.build().init(train),
            hyper=self._hyper(hyper),
            key=k_run,
            step=jnp.int32(0),
            average=dict(train) if self.average_decay is not None else {},
        )
        return jax.tree.map(_strong, state)

    def _dealt(self, key: jax.Array, p: Params) -> Params:
        """Latents in random order, where position decides who competes and atoms come in the order of the data."""
        selector = getattr(self.encoder, "selector", None)
        if not (getattr(selector, "by_position", False) and getattr(self.dictionary, "from_data", False)):
            return p
        order = jax.random.permutation(jax.random.fold_in(key, 1), self.d_sae)
        axes = self.axes
        return {n: jnp.take(a, order, axis=axes[n].index("S")) if "S" in axes[n] else a for n, a in p.items()}

    def init_from(self, sae: SAE, key: jax.Array, batch: Batch, frozen: PyTree = (), **options: Any) -> State:
        """A state that goes on from any frozen SAE; see `jaxsae.recipes.init_from`."""
        from jaxsae.recipes.adopt import init_from

        return init_from(self, sae, key, batch, frozen, **options)

    def _hyper(self, given: dict[str, Any]) -> Params:
        defaults = dict(self.hyper)
        for name in given:
            if name not in defaults:
                raise ConfigError(f"recipe {self.name!r} has no scalar {name!r}{closest(name, defaults)}")
        return {n: jnp.asarray(given.get(n, v)) for n, v in defaults.items()}

    def _rows(self, rows: Rows) -> Rows:
        if rows.x.ndim != 2 or rows.x.shape[1] != self.d_in or rows.y.shape[1] != self.dictionary.d_out:
            raise ConfigError(
                f"recipe {self.name!r} reads rows of width {self.d_in} (targets {self.dictionary.d_out}), "
                f"found {rows.x.shape} and {rows.y.shape}; set d_in to the width of your activations"
            )
        return rows._replace(x=rows.x.astype(jnp.float32), y=rows.y.astype(jnp.float32))

    def _normalised(self, p: Params, rows: Rows) -> Rows:
        return rows._replace(x=self.norm.inputs(p, rows.x), y=self.norm.targets(p, rows.y, rows.x))

    # ------------------------------------------------------------------------------------------ loss
    def ctx(self, state: State, frozen: PyTree = (), train: bool = True) -> Ctx:
        """The context of this state's next step."""
        key, hyper = jax.random.fold_in(state.key, state.step), dict(state.hyper)
        for name, schedule in self.annealed if train else ():
            hyper[name] = hyper[name] * schedule(state.step)
        pools: list[Any] = [getattr(t, "pool", None) for t in self.terms]
        pool = next((p for p in pools if p is not None), None)
        return Ctx(state.step, key, hyper, state.track, frozen, train=train, pool=pool)

    def forward(self, p: Params, batch: Batch, ctx: Ctx, fused: bool = True) -> Out:
        """Everything that terms and trackers read."""
        rows = self._normalised(p, self._rows(self.view(batch, ctx.frozen)))
        ctx, p = ctx.with_rows(rows), self.precision.leaves(p)
        sel = self.encoder.encode(p, self.precision.rows(rows.x), self.dictionary, ctx, self.want, fused)
        nothing: Any = None
        out = Out(rows, p, sel, nothing, nothing, nothing, self.dictionary, self.levels, self.readout)
        e0 = rows.y - self.readout.base(p, rows.x)
        if sel.aux is not None and hasattr(self.levels, "read_both") and reads_atoms(out):
            sse, err, aux_rows = self.levels.read_both(out, e0, jnp.any(ctx.dead()))
            out = out._replace(sel=sel._replace(aux_rows=aux_rows))
        else:
            sse, err = self.levels.read(out, e0, ctx)
        return out._replace(level_sse=sse, err=err, yhat=rows.y - err)

    def loss(self, train: Params, fixed: Params, state: State, batch: Batch, frozen: PyTree = (), fused: bool = True):
        """(loss [], (exact [], observations of the trackers, metrics)); only small arrays leave."""
        ctx = self.ctx(state, frozen)
        out = self.forward({**train, **fixed}, batch, ctx, fused)
        total, metrics = self._terms(out, ctx)
        observed = jax.lax.stop_gradient({t.name: t.observe(out, ctx) for t in self.trackers})
        return total, (jnp.asarray(out.sel.exact), observed, metrics)

    def _terms(self, out: Out, ctx: Ctx) -> tuple[jax.Array, Params]:
        mask, total, metrics = out.rows.mask, jnp.float32(0.0), {}
        for term in self.terms:
            value = term(out, ctx)
            value = term.reducer(value, mask) if value.ndim else value
            weight = objective.weight(term, ctx)
            metrics[term.name] = value
            if getattr(term, "controller", ""):
                metrics[f"{term.name}_weight"] = weight
            total += value * weight
        mean = objective.Mean()
        sse = jnp.sum(out.err**2, axis=1)
        variance = objective.batch_variance(out.rows.y, mask)
        metrics["mse"] = mean(sse, mask)
        metrics["fvu"] = jnp.sum(sse * mask) / jnp.maximum(variance, TINY)
        metrics["l0"] = mean(out.sel.codes.l0(), mask)
        if out.sel.near is not None:
            metrics["threshold_window_share"] = mean(out.sel.near, mask)
        if 1 < out.level_sse.shape[1] <= LOGGED_LEVELS:
            per_level = jnp.sum(out.level_sse * mask[:, None], axis=0) / jnp.maximum(variance, TINY)
            metrics.update({f"fvu_level_{r}": value for r, value in enumerate(per_level)})
        return total, {**metrics, "loss": total}

    # ------------------------------------------------------------------------------------------ step
    def grads(self, state: State, batch: Batch, frozen: PyTree = ()) -> tuple[Params, tuple]:
        """Gradients of the trained leaves, and what the step saw.

        A selection that could not certify its short candidate list is recomputed with the full one, so the result
        never depends on the capacity; the metric `exact` says how often the short list was enough.
        """
        grad = jax.grad(self.loss, has_aux=True)
        args = (*self.split(state.params), state, batch, frozen)
        fast = grad(*args)
        if not (self.encoder.may_miss and self.encoder.can_fuse(self.want)):
            return fast
        exact = fast[1][0]
        g, (_, observed, metrics) = unless(exact, fast, lambda *a: grad(*a, fused=False), args)
        return g, (exact, observed, metrics)

    def apply(self, state: State, grads: Params, seen: tuple) -> tuple[State, Params]:
        """The optimiser step, then trackers, then transforms."""
        ctx = self.ctx(state)
        train, fixed = self.split(state.params)
        lr = state.hyper["lr"] * self.lr_schedule(state.step)
        by_latent = [n for n, a in self.encoder.axes.items() if a == "DS"] if self.encoder.can_fuse(self.want) else ()
        args = train, fixed, grads, state.opt, lr, tuple(by_latent)
        params, opt, norm = move(self.optimizer, self.dictionary, *args)
        exact, observed, metrics = seen
        track = {t.name: t.update(state.track[t.name], observed[t.name], ctx) for t in self.trackers}
        state = replace(state, params=params, opt=opt, track=track, average=self._averaged(state, params))
        for transform in self.transforms:
            state = transform(self, state, ctx)
        metrics = {**metrics, "grad_norm": norm, "lr": lr, "exact": exact.astype(jnp.float32)}
        if "fired" in state.track and "dead_after_tokens" in state.hyper:
            dead = state.track["fired"]["since"] >= state.hyper["dead_after_tokens"]
            metrics["dead_share"] = jnp.mean(dead.astype(jnp.float32))
        return replace(state, step=state.step + 1), metrics

    def _averaged(self, state: State, params: Params) -> Params:
        """Running mean of the weights; early on it follows more closely, so that it does not remember the start."""
        if self.average_decay is None:
            return {}
        t = state.step.astype(jnp.float32)
        decay = jnp.minimum(self.average_decay, (1 + t) / (10 + t))
        return {k: decay * a + (1 - decay) * params[k] for k, a in state.average.items()}

    def step(self, state: State, batch: Batch, frozen: PyTree = ()) -> tuple[State, Params]:
        """One training step: (state, batch, frozen) -> (state, metrics [] f32 by name)."""
        return self.apply(state, *self.grads(state, batch, frozen))

    def over_runs(self) -> State:
        """vmap axes of a State of many runs: all carry the run axis except step, so cadences stay real branches."""
        axes: Any = State(params=0, track=0, opt=0, hyper=0, key=0, step=None, average=0)  # type: ignore[arg-type]
        return axes

    # ------------------------------------------------------------------------------------------ inference
    def weights(self, state: State) -> Params:
        """The leaves to evaluate or export: the running mean where there is one, else the last ones."""
        if not state.average:
            return state.params
        return self.dictionary.project({**state.params, **state.average})

    def evaluate(self, state: State, batch: Batch, frozen: PyTree = ()) -> Params:
        """Metrics of a batch under the inference rules; nothing is updated."""
        ctx = self.ctx(state, frozen, train=False)
        want_nothing_dead = self.replace_terms(tuple(t for t in self.terms if not t.k_aux))
        out = want_nothing_dead.forward(self.weights(state), batch, ctx)
        return want_nothing_dead._terms(out, ctx)[1]

    def replace_terms(self, terms: tuple[Term, ...]) -> "Recipe":
        """A copy with other terms."""
        return replace(self, terms=terms)

    def export(self, state: State, form: str = "auto", meta: Meta | None = None) -> SAE:
        """The frozen SAE of a state; see `jaxsae.sae.freeze`.

        Args:
            state: of one run (not of a fleet: index it first).
            form: "auto", "rank" or "threshold".
            meta: provenance; the recipe's name is added.
        """
        meta = replace(meta or Meta(), recipe=self.name)
        slots = {n: getattr(self, n) for n in ("norm", "encoder", "dictionary", "readout")}
        return freeze(self.weights(state), state.track, state.hyper, form=form, meta=meta, **slots)


def _merge(p: Params, new: Params) -> None:
    clash = sorted(set(p) & set(new))
    if clash:
        raise ConfigError(f"two slots both own the leaf {clash[0]!r}; leaf names must be unique")
    p.update(new)


def _strong(a: jax.Array) -> jax.Array:
    """Without weak types, which would cost a second trace."""
    return a if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else jnp.array(a, a.dtype)


# The library jits module-level functions with a static recipe: bound methods of equal recipes are unequal to jit and
# would be traced once per object.
@partial(jax.jit, static_argnums=0)
def init(
    recipe: Recipe, key: jax.Array, batch: Batch, frozen: PyTree = (), hyper: dict[str, Any] | None = None
) -> State:
    """`recipe.init`, jitted."""
    return recipe.init(key, batch, frozen, **(hyper or {}))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def step(recipe: Recipe, state: State, batch: Batch, frozen: PyTree = ()) -> tuple[State, Params]:
    """`recipe.step`, jitted; the state is donated."""
    return recipe.step(state, batch, frozen)


@partial(jax.jit, static_argnums=0)
def evaluate(recipe: Recipe, state: State, batch: Batch, frozen: PyTree = ()) -> Params:
    """`recipe.evaluate`, jitted."""
    return recipe.evaluate(state, batch, frozen)
