"""What the kernel gives, with one owner for each: eventfds, sockets, memory, waiting, signals."""
