"""What runs machines. ``process``: each machine is a process of this host."""
