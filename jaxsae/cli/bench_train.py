"""`jaxsae bench train`: the whole training step beside its floor, and beside other libraries' steps."""

import dataclasses
import os
from contextlib import ExitStack, closing
from typing import Any, Literal

from jaxsae.cli._bench_peers import METHODS, Peer, peers_of
from jaxsae.cli._bench_shapes import Shape, shape_of
from jaxsae.cli._bench_timing import environment, in_turn, peak_bytes, spread, streaming_bytes, timed
from jaxsae.cli._results import check_place, write_result
from jaxsae.errors import ConfigError
from jaxsae.train.memory import keep_freed_memory


@dataclasses.dataclass(frozen=True)
class BenchTrain:
    """Measure one training step of a method with Adam on rows drawn at random.

    The floor is the encoder product, timed in the same process, plus the bytes that Adam and the active entries must
    move at the measured bandwidth.  Everything is run in turn; medians and ranges are over the rounds.

    Attributes:
        method: topk, batch_topk or matryoshka.
        shape: tiny, smol, mid, A, B or C.
        batch_size: rows per step, in place of the named shape's.
        d_in: width of the rows, likewise.
        d_sae: latents, likewise.
        k: active latents per row, likewise.
        dtype: of the large products; masters and moments stay float32.
        dead: share of the latents that are dead, on which AuxK works.
        repeats: rounds.
        keep_memory: keep freed memory for the next step, as `jaxsae train` does (CPU only; peers run as they come).
        peers: also measure those of sparsify, sae_lens and dictionary_learning that have the method, at the same shape,
            with float32 weights and products as they choose: on a CPU in turn with ours, on a GPU one after another
            for want of memory.
        only_peers: the peers to measure; all of them if empty.
        peers_python: interpreter that has the peers; this one if empty.
        out: where to write the result as JSON; nowhere if empty.
    """

    method: Literal["topk", "batch_topk", "matryoshka"] = "topk"
    shape: str = "smol"
    batch_size: int | None = None
    d_in: int | None = None
    d_sae: int | None = None
    k: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    dead: float = 0.0
    repeats: int = 7
    keep_memory: bool = True
    peers: bool = False
    only_peers: tuple[str, ...] = ()
    peers_python: str = ""
    out: str = ""

    def run(self) -> dict[str, Any]:
        """Measures and prints a table; returns what the JSON holds."""
        import jax

        if self.method not in METHODS:
            raise ConfigError(f"bench: expected method {', '.join(METHODS)}, found {self.method!r}")
        shape = shape_of(self.shape, self.batch_size, self.d_in, self.d_sae, self.k)
        spread([1.0] * self.repeats)  # refuses 0 before anything is compiled
        check_place(self.out)
        if not 0 <= self.dead <= 1 or round(self.dead * shape.d_sae) > shape.d_sae - shape.k:
            raise ConfigError(f"bench: dead must be a share from 0 that leaves k latents alive, found {self.dead:g}")
        if self.dead and (self.peers or self.only_peers):
            raise ConfigError("bench: peers are measured without dead latents; leave out either --dead or the peers")
        if self.peers or self.only_peers:  # jax would leave them no memory of a GPU
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        if self.keep_memory:
            keep_freed_memory()
        platform = jax.default_backend()
        names, device = self._peers(platform), "cpu" if platform == "cpu" else "cuda"
        others = {n: Peer(n, shape, self.peers_python, device, self.method) for n in (names if device == "cpu" else ())}
        with ExitStack() as stack:
            for peer in others.values():
                stack.enter_context(closing(peer))
            for peer in others.values():
                peer.ready()
            calls, memory, stream_bytes = own_calls(shape, self.dtype, self.dead, self.method)
            seconds = in_turn({**calls, **{n: p.step for n, p in others.items()}}, self.repeats)
        memory["peak_bytes"] = peak_bytes()
        result = self._keep(shape, seconds, stream_bytes, memory, others)
        for name in names if device != "cpu" else ():
            others[name], seconds[name] = self._alone(Peer(name, shape, self.peers_python, device, self.method))
            result = self._keep(shape, seconds, stream_bytes, memory, others)
        _print(result)
        return result

    def _keep(
        self, shape: Shape, seconds: dict, stream_bytes: int, memory: dict, peers: dict[str, Peer]
    ) -> dict[str, Any]:
        """What is known so far, also in the file: a peer that takes too long costs nothing that was measured."""
        result = {
            "method": self.method,
            "shape": dataclasses.asdict(shape),
            "dtype": self.dtype,
            "seconds": seconds,
            **against_floor(shape, seconds, stream_bytes),
            "tokens_per_second": {n: shape.batch_size / seconds[n]["median"] for n in ("step", *peers)},
            "memory": memory,
            "peers": {n: p.about for n, p in peers.items()},
            "environment": environment(),
            "settings": dataclasses.asdict(self),
        }
        write_result(self.out, result)
        return result

    def _alone(self, peer: Peer) -> tuple[Peer, dict[str, float]]:
        """A peer that has the device to itself, and its seconds."""
        with closing(peer):
            peer.ready()
            return peer, in_turn({peer.name: peer.step}, self.repeats)[peer.name]

    def _peers(self, platform: str) -> tuple[str, ...]:
        if not (self.peers or self.only_peers):
            return ()
        if platform == "tpu" or (self.dtype != "float32" and platform == "cpu"):
            raise ConfigError(
                f"bench: peers are measured in float32 on the CPU, or on a GPU; this is {self.dtype} on {platform}; "
                "leave out --peers"
            )
        return self.only_peers or peers_of(self.method)


def own_calls(
    shape: Shape, dtype: str, dead: float = 0.0, method: str = "topk"
) -> tuple[dict[str, Any], dict[str, int], int]:
    """Calls to time (step, bare matmul, streaming), the compiled step's memory, and the bytes that streaming moves."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxsae import recipes

    recipe = getattr(recipes, method)(shape.d_in, shape.d_sae, shape.k, bfloat16=dtype == "bfloat16")
    rows = np.random.default_rng(0).standard_normal((shape.batch_size, shape.d_in), np.float32)
    batch = {"x": jnp.asarray(rows)}
    state = with_dead(recipes.init(recipe, jax.random.key(0), batch), round(dead * shape.d_sae))
    stats: Any = recipes.step.lower(recipe, state, batch).compile().memory_analysis()
    memory = {"argument_bytes": stats.argument_size_in_bytes, "temporary_bytes": stats.temp_size_in_bytes}
    holder = [state]
    x, W = batch["x"].astype(dtype), jnp.copy(state.params["W_enc"]).astype(dtype)
    product = jax.jit(lambda x, W: jnp.dot(x, W, preferred_element_type=jnp.float32))

    def step() -> Any:
        holder[0], metrics = recipes.step(recipe, holder[0], batch)
        return holder[0].params, metrics

    streaming, moved = streaming_bytes()
    return {"step": timed(step), "matmul": timed(lambda: product(x, W)), "streaming": streaming}, memory, moved


def with_dead(state: Any, count: int) -> Any:
    """A state whose first latents count as dead, with biases so low that they stay it."""
    fired, b_enc = state.track["fired"], state.params["b_enc"]
    since, low = fired["since"].at[:count].set(2**30), b_enc.at[:count].set(-1e3)
    track = {**state.track, "fired": {**fired, "since": since}}
    return dataclasses.replace(state, track=track, params={**state.params, "b_enc": low})


def against_floor(shape: Shape, seconds: dict[str, dict[str, float]], stream_bytes: int) -> dict[str, Any]:
    """The floor of a step and what a step is of it.

    Example:
        >>> s = {"step": {"median": 3.0}, "matmul": {"median": 1.0}, "streaming": {"median": 1.0}}
        >>> found = against_floor(Shape(1, 1, 1, 1), s, 64)
        >>> found["floor"]["seconds"], found["step_over_floor"]
        (2.0, 1.5)
    """
    bandwidth = stream_bytes / seconds["streaming"]["median"]
    parts = {
        "matmul": seconds["matmul"]["median"],
        "optimizer_bytes": shape.optimizer_bytes / bandwidth,
        "gathered_bytes": shape.gathered_bytes / bandwidth,
    }
    floor = sum(parts.values())
    return {
        "bytes_per_second": bandwidth,
        "flops_per_second": shape.matmul_flops / parts["matmul"],
        "floor": {"seconds": floor, **parts},
        "step_over_floor": seconds["step"]["median"] / floor,
    }


def _print(result: dict[str, Any]) -> None:
    import rich.console
    from rich.table import Table

    title = (
        f"training step of {result['method']}, {result['shape']}, {result['dtype']}, {result['environment']['device']}"
    )
    table = Table("what", "ms (median)", "lowest", "highest", "tokens/s", "of jaxsae's time", title=title)
    own = result["seconds"]["step"]["median"]
    for name, s in result["seconds"].items():
        tokens = result["tokens_per_second"].get(name)
        shown = "" if tokens is None else f"{tokens:,.0f}"
        times = [f"{1e3 * s[key]:.1f}" for key in ("median", "min", "max")]
        table.add_row("jaxsae" if name == "step" else name, *times, shown, f"{s['median'] / own:.2f}")
    floor = result["floor"]["seconds"]
    table.add_row("floor", f"{1e3 * floor:.1f}", "", "", f"{result['shape']['batch_size'] / floor:,.0f}", "")
    console = rich.console.Console(stderr=True)
    console.print(table)
    console.print(
        f"step / floor {result['step_over_floor']:.2f}, matmul {result['flops_per_second'] / 1e9:.0f} GFLOP/s, "
        f"{result['bytes_per_second'] / 1e9:.1f} GB/s, temporaries {result['memory']['temporary_bytes'] / 1e6:.0f} MB"
    )
