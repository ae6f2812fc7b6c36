"""The worker's half: what runs inside of a Dask worker.

The runs of a Dask task are executed here (`execute`, `engine`), and one agent in each worker
process reports what became of them. This room may import the files directly in `deepflow.runner`,
and `deepflow.runner.results`; never `deepflow.runner.driver`. To import this package alone costs
nothing: schedulers do, for `worker.batch`.
"""
