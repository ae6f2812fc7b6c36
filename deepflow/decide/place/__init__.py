"""Where a ready task runs, and which ready task runs first.

Pure: a table of workers, a queue of ready tasks and a policy go in; assignments come out, each with
the figures it was made from. The same code runs in the live scheduler plugin (`backend.placement`),
in the simulator and in unit tests. Nothing here reads a clock or imports Dask.

    task.py         what is known of a ready task and of the job it belongs to
    fleet.py        the table of workers, kept up to date event by event
    links.py        seconds that bytes take from worker to worker
    policy.py       what a policy is
    candidates.py   the workers that a policy is shown
    run_times.py    seconds that tasks of one kind take, kept until more is learned
    policies.py     the policies that come with deepflow
    registry.py     policies by name, a user's own among them
    ready.py        ready tasks, by job and in order
    binder.py       one pass: which ready tasks go to which workers now
    decision.py     what a pass gives for a task, and how it is tuned
    front.py        the held tasks at the head of a queue, told as one
    hold.py         why a task waits for a better worker, and whether that still stands
    shortlist.py    finds them
    feasible.py     which workers can take a task, and why none can
    sources.py      where a task's inputs lie
    ahead.py        tasks that were sent to a busy worker, and when they are late
    gpus.py         nodes with GPUs that tasks may share
    fragmentation.py  GPUs left in pieces that nobody can use
    fgd.py          the policy that leaves the fewest
"""
