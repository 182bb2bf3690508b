"""The version of ivshmem-sim; `pyproject.toml` takes it from here."""

VERSION = "0.1.0"
