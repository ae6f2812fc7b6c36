"""The same small flows under Prefect's threads, prefect-dask and deepflow: equal but for a list."""
