"""A dictionary at the end of a run: written, or left in its checkpoint for want of memory to write it."""

from dataclasses import replace

import jax

from jaxsae import parallel
from jaxsae.io import save
from jaxsae.sae import SAE
from jaxsae.train.run_dir import RunDir

#: Share of a machine's memory that the export at the end of a run may take.
ROOM = 0.8


def write(sae: SAE, folder: RunDir, remote: bool) -> tuple[SAE, str]:
    """Writes a dictionary, unless it is too large for that; all processes have to call this.

    Args:
        sae: the dictionary, where it was trained.
        folder: whose `sae/` it becomes; one of an earlier end of the run is set aside if this one is left out.
        remote: whether the run lies behind a URL.

    Returns:
        the dictionary, now in the memory of process 0, and ""; or as it was, and why it is left in its checkpoint.
    """
    if left_out := too_large(sae, remote):
        parallel.on_first("dictionary", folder.set_dictionary_aside)
        return sae, left_out
    here = replace(sae, params=parallel.to_host(sae.params, first_only=True))
    parallel.on_first("dictionary", lambda: save(here, folder.sae))
    return here, ""


def too_large(sae: SAE, remote: bool, memory: int | None = None) -> str:
    """Why a dictionary is left in its checkpoint, or "" if process 0's machine can hold what writing it takes.

    It is whole in the memory of process 0 while it is written; behind a URL the file passes through it twice more.
    All processes have to ask, and get the answer of the first.

    Args:
        sae: the dictionary, where it was trained.
        remote: whether it is to lie behind a URL.
        memory: bytes of the machine; None asks it.
    """
    return parallel.exchange("left out", _too_large(sae, remote, memory or parallel.machine_bytes()))[0]


def _too_large(sae: SAE, remote: bool, memory: int | None) -> str:
    size = sum(x.nbytes for x in jax.tree.leaves(sae.params))
    need = 3 * size if remote else size
    if memory is None or need <= ROOM * memory:
        return ""
    return (
        f"a dictionary of {size / 2**30:.3g} GiB, which takes {need / 2**30:.3g} GiB to write on a machine of "
        f"{memory / 2**30:.3g} GiB, is left in the newest checkpoint: jaxsae.train.export(run, mesh=mesh) reads it"
    )
