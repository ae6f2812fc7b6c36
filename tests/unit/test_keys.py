"""The flow run and the task can be read off every key of ours."""

from __future__ import annotations

from uuid import uuid4

import pytest

from deepflow.backend.keys import make_key, run_of, task_of


@pytest.mark.parametrize("task", ["fit", "my-task-3", "a b-0-c", "Größe\n2", "x-" + "0" * 32])
def test_a_key_says_whose_it_is(task: str) -> None:
    run = uuid4()
    key = make_key(task, 17, run, "0123abcd")
    assert task_of(key) == task
    assert run_of(key) == str(run)


def test_without_a_flow_run_and_of_others() -> None:
    assert run_of(make_key("fit", 1, None, "0123abcd")) == ""
    assert run_of(("x", 1)) == ""
    assert task_of("sum-0123456789abcdef0123456789abcdef") == "sum"
