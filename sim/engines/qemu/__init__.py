"""Machines whose device is that of a real QEMU: the process, its sockets, and the relay between it and a run."""
