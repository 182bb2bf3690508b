"""The coordinator of a run: its machines in all their lives, its domains, what happens to them, what is seen of it."""
