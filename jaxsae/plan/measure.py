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

#: How libtpu says what a program that does not fit would take, newer versions last.  The newer words name temporaries,
#: but the figure is of the whole program: where a chip with more memory compiles it, its peak is the same.
_DEMANDS = (
    re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm"),
    re.compile(r"total memory required for HLO temporaries \(([\d.]+)([KMGT])\) exceeds"),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Measured:
    """Facts of one compiled step; bytes are per device.

    Attributes:
        fits: a TPU's compiler placed it in the chip's memory; elsewhere the peak is within the limit, and None if no
            limit is known.
        peak: largest number of bytes in use at once; where it does not fit on a TPU, what the compiler says it would
            take, and None if it does not say.
        parts: bytes of what is kept from step to step, by name, and of the batch.
        temporaries: peak less what is kept.
        collectives: in the order of the program; empty where it does not fit.
        flops, bytes_accessed: of the compiler's own cost analysis, loops counted once.
        seconds: that compiling took.
        topk_calls: exact selections by the compiler's own slow algorithm.
        kernels: custom kernels in the program.
        why: the compiler's complaint where it does not fit.
    """

    fits: bool | None
    peak: int | None
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
    def temporaries(self) -> int | None:
        return None if self.peak is None else max(0, self.peak - self.kept)

    def received(self, where: str | None = None) -> float:
        """Bytes a device receives per step: in all, or by collectives in one kind of place."""
        return sum(c.received for c in self.collectives if where in (None, c.where))


def measure(programs: Programs, batch: Batch, limit: float | None = None) -> Measured:
    """Compiles `programs.step`, the one that training runs, and reads the result.

    Args:
        programs: of the method, on its mesh, which may be of one device.
        batch: its shapes.
        limit: bytes that programs may take on a device; not needed for a TPU, whose compiler knows.
    """
    assert programs.mesh is not None  # which says where each array lies
    parts, arrays = _parts(programs.abstract, batch, programs), _arrays(programs.abstract)
    start = time.monotonic()
    device = programs.mesh.devices.flat[0]
    with compiling_for(device.platform, device.device_kind):  # the kernels that those devices would run
        lowered = programs.lower(batch)
    try:
        compiled, text = compile_and_read(lowered, device.platform)
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        why = " ".join(str(e).split())
        return Measured(False, demand(why), parts, seconds=time.monotonic() - start, why=why[:300], arrays=arrays)
    peak, cost = peak_bytes(compiled.memory_analysis(), device.platform), compiled.cost_analysis() or {}
    return Measured(
        fits=True if device.platform == "tpu" else None if limit is None else peak <= limit,
        peak=peak,
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


def demand(why: str) -> int | None:
    """Bytes that the compiler says a program would need, or None if its words are not known.

    Example:
        >>> demand("Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm.") == 18.5 * 2**30
        True
    """
    found = next(filter(None, (words.search(why) for words in _DEMANDS)), None)
    return round(float(found[1]) * _UNITS[found[2]]) if found else None


def peak_bytes(memory: Any, platform: str) -> int:
    """Most bytes in use at once, by the compiler's account of a program.

    Only a TPU's own figure counts every temporary, and when each is in use; that of jaxlib's CPU compiler leaves them
    out, so elsewhere all temporaries are added to what is kept.
    """
    told = getattr(memory, "peak_memory_in_bytes", 0) or 0
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    whole = kept + memory.temp_size_in_bytes
    return int(told if platform == "tpu" and told else max(told, whole))


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
