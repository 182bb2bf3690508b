"""Benchmarks: ``python -m tests.bench`` compares the simulator with C.

Each ratio compares ours with a C reference (``reference.c``, built when the benchmarks start) in alternating rounds of
one run, on pinned CPUs; it is the median over the rounds. Work that does not wait is measured in CPU time: other
processes preempt ours and C, and not equally. Absolute times are context, not a goal.
"""
