"""deepflow's placement inside a Dask scheduler, live or simulated.

plugin.py     the plugin that is registered with a scheduler: what it is to do
live.py       placement in one running scheduler: the parts below put together
takeover.py   Dask's transitions as they are while tasks are placed here
stand_ins.py  how methods of one scheduler are replaced and put back, and the check that they may be
waiting.py    the tasks that wait to be placed
passes.py     the passes that hand them out, and the timer
recalls.py    what was sent to a busy worker too early, and is asked for
news.py       what Dask tells of workers and tasks, taken in
mirror.py     the only reader of Dask's state: workers, tasks and jobs as `decide.place` has them
record.py     what was seen and decided, until somebody asks
guard.py      no fault of the above costs a run its result
annotation.py what the driver says about its tasks
preload.py    placement for a scheduler that somebody starts by hand
"""
