"""How the process keeps its memory."""

import ctypes

import torch

LARGEST = 2**25 - 2**12  # bytes of a block that still counts
TRIM, MMAP, ARENAS = -1, -3, -8  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX of glibc's mallopt(3)


def keep_freed() -> None:
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


def keep_some_freed() -> None:
    """The same up to twice LARGEST, for libraries, without a setting: glibc keeps twice the largest block freed so far.
    This one is never written to, so it takes no memory."""
    torch.empty(LARGEST, dtype=torch.uint8)
