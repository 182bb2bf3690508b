"""Virtio over ivshmem v2 (protocols 8000 to FFFF): the header in the read/write section, and split virtqueues."""
