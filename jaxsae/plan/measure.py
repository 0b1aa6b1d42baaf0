"""What compiling the step tells: whether it fits, memory by part, collectives."""

import pathlib
import re
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxsae.kernels._dispatch import compiling_for
from jaxsae.plan.hlo import Collective, collectives
from jaxsae.recipes import Programs, State
from jaxsae.typing import Batch


@dataclass(frozen=True)
class Measured:
    """Facts of one compiled step; bytes are per device.

    Attributes:
        fits: the compiler placed it in the device's memory (always true where it knows no limit).
        peak: largest number of bytes in use at once; the demand the compiler names where it does not fit.
        parts: bytes of what is kept from step to step, by name, and of the batch.
        temporaries: peak less what is kept.
        collectives: in the order of the program; empty where it does not fit.
        flops, bytes_accessed: of the compiler's own cost analysis, loops counted once.
        seconds: that compiling took.
        topk_calls: exact selections by the compiler's own slow algorithm.
        kernels: custom kernels in the program.
        why: the compiler's complaint where it does not fit.
    """

    fits: bool
    peak: int
    parts: dict[str, int]
    collectives: tuple[Collective, ...] = ()
    flops: float = 0.0
    bytes_accessed: float = 0.0
    seconds: float = 0.0
    topk_calls: int = 0
    kernels: int = 0
    why: str = ""
    arrays: tuple[tuple[str, str, str, str, int], ...] = field(default=())

    @property
    def kept(self) -> int:
        return sum(self.parts.values())

    @property
    def temporaries(self) -> int:
        return max(0, self.peak - self.kept)

    def received(self, where: str | None = None) -> float:
        """Bytes a device receives per step: in all, or by collectives in one kind of place."""
        return sum(c.received for c in self.collectives if where in (None, c.where))


def measure(programs: Programs, batch: Batch) -> Measured:
    """Compiles `programs.step`, the one that training runs, and reads the result."""
    parts, arrays = _parts(programs.abstract, batch, programs), _arrays(programs.abstract)
    start = time.monotonic()
    device = jax.devices()[0] if programs.mesh is None else programs.mesh.devices.flat[0]
    with compiling_for(device.platform, device.device_kind):  # the kernels that those devices would run
        lowered = programs.lower(batch)
    try:
        compiled, text = compile_and_read(lowered, device.platform)
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        why = " ".join(str(e).split())
        return Measured(False, _demand(why), parts, seconds=time.monotonic() - start, why=why[:300], arrays=arrays)
    memory = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = getattr(memory, "peak_memory_in_bytes", 0) or kept + memory.temp_size_in_bytes
    cost = compiled.cost_analysis() or {}
    return Measured(
        fits=True,
        peak=int(peak),
        parts=parts,
        collectives=tuple(collectives(text)),
        flops=float(cost.get("flops", 0.0)),
        bytes_accessed=float(cost.get("bytes accessed", 0.0)),
        seconds=time.monotonic() - start,
        topk_calls=len(re.findall(r'custom_call_target="TopK', text)),
        kernels=len(re.findall(r'custom_call_target="tpu_custom_call"', text)),
        arrays=arrays,
    )


def compile_and_read(lowered: Any, platform: str) -> tuple[Any, str]:
    """The program, and its text after optimisation.

    A TPU compiler writes the text itself: jaxlib cannot read back every program of a newer libtpu (where v6e's gathers
    go to the SparseCore, it refuses their asynchronous updates).
    """
    if platform != "tpu":
        compiled = lowered.compile()
        return compiled, compiled.as_text()
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        texts = sorted(pathlib.Path(folder).glob("*.after_optimizations.txt"))
        return compiled, texts[0].read_text() if texts else compiled.as_text()


def _demand(why: str) -> int:
    """Bytes that the compiler says the program needs."""
    found = re.search(r"Used ([\d.]+)([KMG]) of", why)
    return round(float(found[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[found[2]]) if found else 0


def _bytes(leaf: Any) -> int:
    """Of the part of an abstract array that one device holds."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return 8
    size = leaf.dtype.itemsize
    for n in leaf.sharding.shard_shape(leaf.shape):
        size *= n
    return size


def _parts(state: State, batch: Batch, programs: Programs) -> dict[str, int]:
    total = lambda tree: sum(_bytes(a) for a in jax.tree.leaves(tree))  # noqa: E731
    placed = {k: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=programs.rows) for k, a in batch.items()}
    parts = {
        "parameters": total(state.params),
        "moments": total(state.opt),
        "running mean": total(state.average),
        "trackers and scalars": total((state.track, state.hyper, state.step)),
        "batch": total(placed),
    }
    return {name: size for name, size in parts.items() if size}


def _arrays(state: State) -> tuple[tuple[str, str, str, str, int], ...]:
    """(name, shape, dtype, placement, bytes per device) of every array that is kept."""
    rows = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        shape = " x ".join(f"{n:,}" for n in leaf.shape) or "one number"
        axes = [a if isinstance(a, str) else "+".join(a) if a else "whole" for a in leaf.sharding.spec]
        rows.append((name, shape, str(leaf.dtype), ", ".join(axes) or "whole", _bytes(leaf)))
    return tuple(rows)
