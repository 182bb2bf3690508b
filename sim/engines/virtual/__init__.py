"""Machines under virtual time: all in one thread, on a clock that jumps, as a function of one seed."""
