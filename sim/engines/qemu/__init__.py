"""Machines whose device is that of a real QEMU: the process, its sockets, and what stands between it and a run."""
