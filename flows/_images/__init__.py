"""The steps of the image pipeline as plain functions: no Prefect, no Dask.

`sheets` makes and decodes scanned sheets of digits, `network` learns to read them (the only one
that imports torch, and only when called), `reading` compares and adds up, `picture` draws.
"""
