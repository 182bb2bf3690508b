"""One machine in its process: its devices, its program, what waits for interrupts and keeps the books."""
