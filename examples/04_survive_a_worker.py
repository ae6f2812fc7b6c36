"""A worker is killed in the middle of a flow; the flow ends with the right answer.

    python examples/04_survive_a_worker.py

Twelve steps of half a second run on two workers. One worker gets SIGKILL, as the kernel does when
memory runs out. What had finished was `durable`: its result is read back, and it is not run again.
Each step writes a line to a file when it runs, so that this can be counted.
"""

import os
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from prefect import flow, task
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepflow import DeepflowTaskRunner, EmbeddedServer, WorkerClass, hints

N_STEPS = 12


@hints(durable=True)
@task
def step(number: int, marks: str) -> int:
    """Half a second of work with a side effect that must not happen twice."""
    time.sleep(0.5)
    with open(marks, "a") as file:
        file.write(f"{number} {os.getpid()}\n")
    return number * number


@flow(task_runner=DeepflowTaskRunner(local=[WorkerClass("cpu", count=2)]))
def steps(marks: str) -> int:
    """The sum of all steps' results."""
    return sum(step.map(range(N_STEPS), marks=marks).result())


def kill_a_worker(marks: Path) -> None:
    """Wait until four steps have finished, then kill the worker that ran the last of them."""
    deadline_s = time.monotonic() + 25
    while time.monotonic() < deadline_s:
        lines = marks.read_text().splitlines() if marks.exists() else []
        if len(lines) >= 4:
            pid = int(lines[-1].split()[1])
            time.sleep(0.2)  # into the middle of its next step
            os.kill(pid, signal.SIGKILL)
            print(f"Killed worker process {pid} after {len(lines)} of {N_STEPS} steps.")
            return
        time.sleep(0.05)


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer() as server,
        temporary_settings({PREFECT_API_URL: server.api_url}),
    ):
        marks = Path(folder) / "marks"
        killer = threading.Thread(target=kill_a_worker, args=(marks,))
        killer.start()
        answer = steps(str(marks))
        killer.join()
        counts = Counter(line.split()[0] for line in marks.read_text().splitlines())
        twice = sorted(name for name, count in counts.items() if count > 1)
        right = sum(number * number for number in range(N_STEPS))
        print(f"The answer is {answer}, which is {'right' if answer == right else 'WRONG'}.")
        print(f"Steps that had finished and ran twice: {len(twice)}.")
