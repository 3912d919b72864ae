"""How the process keeps freed memory."""

import ctypes

TRIM, MMAP, ARENAS = -1, -3, -8  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX of glibc's mallopt(3)


def raise_mmap_threshold() -> None:
    """From now on freed memory, up to 256 MiB, serves the next tensors. By default glibc gives most of it back to the
    system at once, and every new tensor costs its page faults again: decoding can take twice as long. For programs to
    call, before their first tensors; without effect where the C library is another one."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(MMAP, 2**25)  # the largest it takes
    mallopt(TRIM, 2**28)
    mallopt(ARENAS, 1)  # else each thread keeps its own
