"""Machines as processes of this host: a worker, its handle in the parent, and the messages between them."""
