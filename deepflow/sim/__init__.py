"""The judge: the real Dask scheduler and its worker state machines, driven in virtual time.

What may live here: workloads, clusters and networks as values, the engine that plays them, and the
reports that are drawn from what happened. It may import Dask and everything below, also the
scheduler plugin that runs in production (`backend`), so that what is judged is what runs. The same
seed gives the same events to the last byte in every process.
"""
