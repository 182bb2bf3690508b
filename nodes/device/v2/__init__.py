"""The device of ivshmem version 2: its profiles, its memory in sections, the device, its endpoint."""
