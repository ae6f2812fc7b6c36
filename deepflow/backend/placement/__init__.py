"""deepflow's placement inside a Dask scheduler, live or simulated.

plugin.py     the scheduler plugin: what is asked of Dask, when, and what is done on a fault
binding.py    the scheduler's own methods that it stands in for, and the check that it may
mirror.py     the only reader of Dask's state: workers, tasks and jobs as `decide.place` has them
annotation.py what the driver says about its tasks
"""
