"""Whether this machine's memory has room for writing a dictionary."""

import jax

from jaxsae import parallel
from jaxsae.sae import SAE
from jaxsae.train.run_dir import RunDir

#: Share of a machine's memory that the export at the end of a run may take.
ROOM = 0.8


def too_large(sae: SAE, run_dir: RunDir, memory: int | None = None) -> str:
    """Why a dictionary is left in its checkpoint, or "" if process 0's machine can hold what writing it takes.

    It is whole in the memory of process 0 while it is written; behind a URL the file passes through it twice more.
    All processes have to ask, and get the answer of the first.

    Args:
        sae: the dictionary, where it was trained.
        run_dir: where it is to be written.
        memory: bytes of the machine; None asks it.
    """
    return parallel.exchange("left out", _too_large(sae, run_dir, memory or parallel.machine_bytes()))[0]


def _too_large(sae: SAE, run_dir: RunDir, memory: int | None) -> str:
    size = sum(x.nbytes for x in jax.tree.leaves(sae.params))
    need = 3 * size if run_dir.place.remote else size
    if memory is None or need <= ROOM * memory:
        return ""
    return (
        f"a dictionary of {size / 2**30:.3g} GiB, which takes {need / 2**30:.3g} GiB to write on a machine of "
        f"{memory / 2**30:.3g} GiB, is left in the newest checkpoint: jaxsae.train.export(run, mesh=mesh) reads it"
    )
