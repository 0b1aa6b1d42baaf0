"""Memory of a process that trains on a CPU: pages that a step has freed are kept for the next one."""

import contextlib
import ctypes

#: glibc's names for the settings (malloc.h): give memory back above so many bytes; blocks mapped on their own; heaps.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets the C allocator keep what is freed instead of returning it to the system; True where that is possible.

    A compiled step on a CPU takes its temporary arrays from `malloc` anew each time.  By default glibc maps blocks of
    that size freshly and unmaps them afterwards, so that every step pays for zeroed pages again, which costs as much as
    some of its arithmetic.  Only its first heap can be kept, so all threads share that one: call this before JAX first
    touches a device, since threads that already run keep the heaps they have.

    What is freed is not given back to the system, so memory stays near its peak, which gaps in the one heap can raise.
    Affects the whole process, so commands call it and the library does not.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    with contextlib.suppress(OSError, AttributeError):  # no C library by that name, or not glibc
        libc = ctypes.CDLL("libc.so.6")
        settings = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, ARENA_MAX: 1}
        return all(libc.mallopt(name, value) for name, value in settings.items())
    return False
