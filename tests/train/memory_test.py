"""Freed memory that stays: the second use of a large block touches no new pages."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys, threading
import numpy as np
from jaxsae.train.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    touched = threading.Thread(target=np.ones, args=(2**23,))  # XLA allocates in a thread of its own
    touched.start()
    touched.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


def second_use(mode):
    out = subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=True).stdout.split()
    return out[0] == "True", int(out[1])


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_a_large_block_is_used_again_without_new_pages():
    (kept, again), (_, fresh) = second_use("keep"), second_use("plain")
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert again < fresh / 10
