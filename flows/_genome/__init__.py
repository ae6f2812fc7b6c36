"""The steps of the genome flow as plain functions: no Prefect, no Dask.

`variants` makes, reads and joins genotypes, `statistics` counts what populations share, `picture`
draws.
"""
