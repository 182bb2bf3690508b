"""Shared by the engines: configuration of a machine, its program, its recorder, its failures."""
