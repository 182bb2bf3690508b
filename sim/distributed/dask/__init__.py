"""Dask, as this program uses it: the one folder that imports ``dask`` and ``distributed``."""
