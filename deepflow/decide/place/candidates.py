"""The workers that a policy is shown for a task, and when the task would be done on each."""

from __future__ import annotations

from deepflow.decide.place.fleet import Worker

__all__ = ["Candidates"]


class Candidates:
    """The workers a task could go to: parallel lists, times in seconds from now."""

    __slots__ = ("missing_share", "n_heads", "on_gpu", "queue_s", "run_s", "transfer_s", "workers")

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.queue_s: list[float] = []
        """Until the worker can begin with it; 0: it has a thread and the resources free."""
        self.transfer_s: list[float] = []
        """For the inputs that the worker does not hold."""
        self.missing_share: list[float] = []
        """Of the input bytes, those that the worker does not hold; 0 for a task without inputs."""
        self.run_s: list[float] = []
        self.on_gpu: list[bool] = []
        """Whether a task that can use a GPU would be given one there."""
        self.n_heads = 0
        """So many of them stand for a group of like workers; the others hold data."""

    def __len__(self) -> int:
        return len(self.workers)

    def add(
        self,
        worker: Worker,
        queue_s: float,
        transfer_s: float,
        run_s: float,
        on_gpu: bool = False,
        missing_share: float = 0.0,
    ) -> None:
        """One more."""
        self.workers.append(worker)
        self.queue_s.append(queue_s)
        self.transfer_s.append(transfer_s)
        self.missing_share.append(missing_share)
        self.run_s.append(run_s)
        self.on_gpu.append(on_gpu)

    def finish_s(self) -> list[float]:
        """When each would be done: queue, then transfer, then run."""
        return [
            q + t + r for q, t, r in zip(self.queue_s, self.transfer_s, self.run_s, strict=True)
        ]
