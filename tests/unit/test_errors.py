from __future__ import annotations

import copy
import pickle

import pytest

from deepflow import errors
from deepflow.errors import DeepflowError, nearest

EXAMPLES = [
    errors.DeepflowError("plain"),
    errors.ConfigurationError("bad value"),
    errors.HintError("bad hint"),
    errors.UnknownArgumentError("adress"),
    errors.UnplaceableError("no gpu", wanted="gpu=2", nearest_offer="gpu=1"),
    errors.ClusterUnreachableError("nobody", address="tcp://10.0.0.1:8786"),
    errors.IncompatibleVersionError("too old"),
    errors.JournalError("torn"),
    errors.FrameError("damaged"),
    errors.GeneratorTaskError("would be emptied"),
    errors.UnresolvedInputError("a future in a deque"),
    errors.UnpicklableResultError("a lock"),
    errors.RemoteTaskError("ApiError: busy", original_type="ApiError"),
    errors.TaskCancelledError("cancelled"),
    errors.IsolatedProcessError("killed", exit_code=-9),
    errors.HistoryError("damaged", source="history.db"),
    errors.StoredResultError("damaged"),
    errors.InfrastructureError("lost", cause="worker-lost", worker="w-1", attempts=3),
    errors.ContextMissingError("no context", cause="context-missing", attempts=1),
    errors.ValueLostError("lost", cause="value-lost", attempts=1),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("travel", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_an_error_keeps_type_words_and_fields_when_it_travels(error, travel) -> None:
    arrived = travel(error)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error) != ""
    assert arrived.__dict__ == error.__dict__


def test_every_error_of_the_module_is_in_the_examples_and_in_the_drawn_tree() -> None:
    classes = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, DeepflowError)
    }
    assert {type(example) for example in EXAMPLES} == classes
    for cls in classes:
        assert cls.__name__ in (errors.__doc__ or "")
        assert cls.__name__ in errors.__all__


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ConfigurationError, ValueError),
        (errors.HintError, ValueError),
        (errors.ClusterUnreachableError, ConnectionError),
        (errors.InfrastructureError, RuntimeError),
        (errors.GeneratorTaskError, TypeError),
        (errors.UnplaceableError, errors.HintError),
        (errors.ContextMissingError, errors.InfrastructureError),
        (errors.ValueLostError, errors.InfrastructureError),
    ],
)
def test_an_error_can_be_caught_as_the_builtin_it_is(error, builtin) -> None:
    assert issubclass(error, builtin)


@pytest.mark.parametrize(
    ("misspelt", "found"),
    [("gpus", "gpu"), ("Worker-Class", "worker_class"), ("zzzz", None), ("class", "worker_class")],
)
def test_the_nearest_name_is_suggested_only_if_it_is_near(misspelt, found) -> None:
    assert nearest(misspelt, ("cpu", "gpu", "worker_class")) == found
