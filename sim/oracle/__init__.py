"""Comparisons with a real QEMU: of the simulated device, operation by operation, and of whole runs."""
