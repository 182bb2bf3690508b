"""The comparison of the simulated device with a real QEMU."""
