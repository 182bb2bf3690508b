"""The Ethernet protocol of ivshmem v2 (protocol 1), as its drivers speak it: queues in the output sections, a link."""
