"""What machines of every engine have in common: how one is configured, its program, its recorder, its failures."""
