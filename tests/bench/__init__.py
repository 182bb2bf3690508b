"""How fast it is, next to C: ``python -m tests.bench`` measures what PERFORMANCE.md sets bars for.

Every ratio pairs ours with a C reference (``reference.c``, built on the spot) in alternating rounds of one run, on
CPUs that are pinned; it is the median over the rounds. Where nobody waits, time of CPU is what counts: what else
the machine does preempts ours and C alike, but never evenly. Absolute times are context, never a goal.
"""
