"""Objects of the kernel, one owner for each: eventfds, sockets, memory, waiting, signals."""
