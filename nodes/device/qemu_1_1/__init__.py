"""The device of QEMU 1.1 (2012): its profiles, its client, its properties and its shared object."""
