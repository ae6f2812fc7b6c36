"""The pure core: pictures of the world go in, decisions come out.

What may live here: frozen values and functions of them. It imports numpy, the standard library and
`deepflow.hints` and `deepflow.errors`; no Dask, no Prefect, no torch and no clock, so that the same
code runs in the real scheduler, in a simulation and in a unit test.
"""
