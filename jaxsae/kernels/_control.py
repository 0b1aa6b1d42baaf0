"""Branches that stay branches under `vmap`.

A plain `lax.cond` with a batched predicate becomes a select, and then every run of a sweep pays for both sides at
every step.  The helpers here reduce the predicate over the runs first, so the compiled program keeps one branch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


def _batch_full(n: int, tree: Any, batched: Any) -> Any:
    """Gives every leaf a leading run axis of size n."""
    return jax.tree.map(lambda a, b: a if b else jnp.broadcast_to(a, (n, *jnp.shape(a))), tree, batched)


def _in_axes(batched: Any) -> Any:
    return jax.tree.map(lambda b: 0 if b else None, batched)


def unless(ok: jax.Array, fast: Any, slow: Callable, args: Any) -> Any:
    """`fast` where `ok`, else `slow(*args)`; under vmap `slow` runs only if some run is not ok.

    Args:
        ok: [] bool.
        fast: a value already computed.
        slow: function of `*args` with the same output type as `fast`.
        args: tuple of arguments of `slow`.

    Example:
        >>> int(unless(jnp.array(False), jnp.array(1), lambda a: a + 1, (jnp.array(5),)))
        6
    """

    @custom_vmap
    def pick(ok, fast, args):
        return jax.lax.cond(ok, lambda: fast, lambda: slow(*args))

    @pick.def_vmap
    def _(n, batched, ok, fast, args):
        everywhere = jax.tree.map(lambda _: True, fast)
        full = _batch_full(n, fast, batched[1])
        again = jax.vmap(slow, in_axes=_in_axes(batched[2]), axis_size=n)
        return jax.lax.cond(jnp.all(ok), lambda: full, lambda: again(*args)), everywhere

    return pick(ok, fast, args)


def when(live: jax.Array, compute: Callable, args: Any) -> Any:
    """`compute(*args)` where `live`, else zeros of the same shapes; under vmap skipped only if no run is live.

    `compute` must itself return zeros for a run that is not live: the branch saves time, it does not mask.

    Example:
        >>> float(when(jnp.array(False), lambda a: a * 2, (jnp.array(3.0),)))
        0.0
    """

    def zeros(*args):
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(compute, *args))

    @custom_vmap
    def pick(live, args):
        return jax.lax.cond(live, compute, zeros, *args)

    @pick.def_vmap
    def _(n, batched, live, args):
        axes = _in_axes(batched[1])
        batch = lambda f: jax.vmap(f, in_axes=axes, axis_size=n)  # noqa: E731
        out = jax.lax.cond(jnp.any(live), batch(compute), batch(zeros), *args)
        return out, jax.tree.map(lambda _: True, out)

    return pick(live, args)


def either(live: jax.Array, yes: Callable, no: Callable, args: Any) -> Any:
    """`yes(*args)` where `live`, else `no(*args)`; under vmap all runs take `yes` if some run is live.

    `yes` must itself be right for a run that is not live; `no` is the cheaper way to the same result.

    Example:
        >>> int(either(jnp.array(False), lambda a: a, lambda a: a * 0, (jnp.array(5),)))
        0
    """

    @custom_vmap
    def pick(live, args):
        return jax.lax.cond(live, yes, no, *args)

    @pick.def_vmap
    def _(n, batched, live, args):
        axes = _in_axes(batched[1])
        batch = lambda f: jax.vmap(f, in_axes=axes, axis_size=n)  # noqa: E731
        out = jax.lax.cond(jnp.any(live), batch(yes), batch(no), *args)
        return out, jax.tree.map(lambda _: True, out)

    return pick(live, args)


def either_in_place(live: jax.Array, yes: Callable, no: Callable, state: Any, old: Any) -> tuple[Any, Any, Any]:
    """`yes(state, old)` where `live`, else `no(state, old)`, in the memory of the state where it is donated.

    A compiler copies what goes through a branch into memory of its own, and with a large state that costs more than
    many a branch saves.  What goes through a loop it updates in place, so this is two loops of one turn at most.

    Args:
        live: [] bool.
        yes, no: functions of (state, old) -> (state, more, new).
        state: arrays.
        old: arrays like `new`.

    Example:
        >>> add = lambda n: lambda state, old: (state + n, (), old)
        >>> state, _, old = either_in_place(jnp.array(True), add(1), add(5), jnp.array(2), jnp.array(0))
        >>> int(state), int(old)
        (3, 0)
    """
    more = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(yes, state, old)[1])
    carry = state, more, old
    for goes, move in ((live, yes), (~live, no)):

        def turn(carry: Any, move: Callable = move) -> Any:
            return jnp.bool_(False), move(carry[1][0], carry[1][2])

        carry = jax.lax.while_loop(lambda carry: carry[0], turn, (goes, carry))[1]
    return carry
