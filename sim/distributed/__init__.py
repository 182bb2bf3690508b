"""Runs on several hosts: command lines as tasks of a Dask scheduler, each in a process group of its own."""
