"""A placement policy of your own, judged beside Dask and deepflow on the same simulated cluster.

    python examples/06_own_policy.py

A policy is a class with one method, `score`: a number for each worker that a task could go to, the
lowest wins. The simulator plays it with the real Dask scheduler in virtual time, so nothing has to
be started. Here an image pipeline runs on workers of unlike speed, one with a GPU.

To use it in a run, pass the object or its name: `DeepflowTaskRunner(policy=Frugal())`. A package
offers it to others by name through an entry point::

    [project.entry-points."deepflow.policies"]
    frugal = "my_package.policies:Frugal"

and then `policy="frugal"` works wherever a policy is named.
"""

from deepflow.decide.events import Transferred
from deepflow.decide.place.policy import Policy
from deepflow.sim.cluster import ClusterSpec, SimWorkerClass
from deepflow.sim.compare import play
from deepflow.sim.generators import pipelines
from deepflow.sim.workload import Workload


class Frugal(Policy):
    """The worker that ends the task first, where a second of transfer counts as three."""

    name = "frugal"
    looks_at = "shortlist"  # busy workers too: a task may wait for a better one

    def score(self, task, candidates, rng):
        times = zip(candidates.queue_s, candidates.transfer_s, candidates.run_s, strict=True)
        return [queue_s + 3 * transfer_s + run_s for queue_s, transfer_s, run_s in times]

    def task_order(self, task):
        return (-task.rank_s, task.dask_order)  # the longest way to the end goes first


WORKLOAD = Workload("images", (pipelines("run", n_items=60, spread=0.3, n_bytes=40_000_000),))
CLUSTER = ClusterSpec(
    "unlike workers",
    (
        SimWorkerClass("old", 4),
        SimWorkerClass("new", 2, threads=2, speed=2.5),
        SimWorkerClass("gpu", 1, threads=2, resources=(("GPU", 1.0),), speeds=(("*+gpu", 8.0),)),
    ),
)
SEEDS = range(3)

if __name__ == "__main__":
    print(f"{WORKLOAD.n_tasks} tasks, mean of {len(SEEDS)} seeds")
    print(f"{'policy':10} {'makespan':>10} {'moved':>10}")
    for policy in ("stock", "heft", Frugal()):
        outcomes = [play(WORKLOAD, CLUSTER, policy, seed=seed).outcome for seed in SEEDS]
        makespan_s = sum(outcome.makespan_s for outcome in outcomes) / len(outcomes)
        moved_bytes = sum(
            event.n_bytes
            for outcome in outcomes
            for event in outcome.events
            if isinstance(event, Transferred)
        ) / len(outcomes)
        name = policy if isinstance(policy, str) else policy.name
        print(f"{name:10} {makespan_s:8.1f} s {moved_bytes / 1e6:7.0f} MB")
