"""Memory of a process that trains on a CPU: pages that a step has freed are kept for the next one."""

import contextlib
import ctypes

#: glibc's names for the settings (malloc.h): give memory back above so many bytes; most blocks mapped on their own.
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Lets the C allocator keep what is freed instead of returning it to the system; True where that is possible.

    A compiled step on a CPU takes its temporary arrays from `malloc` anew each time.  By default glibc maps blocks of
    that size freshly and unmaps them afterwards, so that every step pays for zeroed pages again, which costs as much as
    some of its arithmetic.  Peak memory stays what it was; it is only not given back between steps.  Affects the whole
    process, so commands call it and the library does not.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    with contextlib.suppress(OSError, AttributeError):  # no C library by that name, or not glibc
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(MMAP_MAX, 0) and libc.mallopt(TRIM_THRESHOLD, 2**31 - 1))
    return False
