"""What only the device of QEMU 1.1 (2012) has: its client, its properties, its shared object."""
