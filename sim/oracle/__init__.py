"""A real QEMU as the judge of the simulated device."""
