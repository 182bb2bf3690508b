"""What one page fault costs on this host."""

from __future__ import annotations

import mmap
import time

PAGES = 512


def page_fault_ns() -> float:
    """CPU time of the first write to a page of fresh memory, the mean of some; takes less than a millisecond."""
    with mmap.mmap(-1, PAGES * mmap.PAGESIZE) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        begin_ns = time.thread_time_ns()
        for at in range(0, len(memory), mmap.PAGESIZE):
            memory[at] = 1
        return (time.thread_time_ns() - begin_ns) / PAGES
