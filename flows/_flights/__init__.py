"""The steps of the flight-delay flow as plain functions: no Prefect, no Dask.

`rows` reads and checks the tables, `features` joins them, `model` trains and predicts (the only
one that imports torch, and only when called), `evaluation` adds up errors, `picture` draws.
"""
