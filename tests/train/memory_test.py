"""Freed memory that stays: later uses of a large block touch no new pages."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys, threading
import numpy as np
from jaxsae.train.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
def faults(uses):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(uses):
        np.ones(2**23)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def measure():
    faults(1)
    print(kept, faults(USES))
threading.Thread(target=measure).start()  # XLA allocates in threads of its own
"""

USES = 20  # a use is 64 MiB: 16,384 faults, or 32 where the system gives pages of 2 MiB


def later_uses(mode):
    code = CODE.replace("USES", str(USES))
    out = subprocess.run([sys.executable, "-c", code, mode], capture_output=True, text=True, check=True).stdout.split()
    return out[0] == "True", int(out[1])


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_a_large_block_is_used_again_without_new_pages():
    (kept, again), (_, fresh) = later_uses("keep"), later_uses("plain")
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert again < fresh / 10
