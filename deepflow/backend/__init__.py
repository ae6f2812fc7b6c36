"""The Dask side: where workers come from and what runs inside scheduler and workers.

What may live here: code that acts on Dask. It may import distributed, `deepflow.intermediates`,
`deepflow.observe` and `deepflow.decide`; not Prefect and not torch. `contract` names private parts
of Dask and of Prefect, and imports neither before it is asked about them.
"""
