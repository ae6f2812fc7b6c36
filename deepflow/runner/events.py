"""Task-run state events, built once as JSON.

Prefect's own path builds a pydantic event, measures it, copies a context, hands it to a thread
and asks the API for related resources: about 0.8 ms of CPU an event, three events a run. Here
the same payload is put together directly; the driver, which knows the flow run's related
resources once and for all, adds them when it sends (`recorder`).
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson
from prefect._internal.result_records import ResultRecord
from prefect._internal.uuid7 import uuid7
from prefect.client.schemas import TaskRun

from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.observe.text import clean, to_json
from deepflow.runner.wire import EventRecord

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

_MESSAGE_LIMIT = 100_000
_NAME_LIMIT = 2_000
"""PostgreSQL's indexes take no more; characters, as all these limits."""
_EVENT_NAME_LIMIT = 1_000
_SHORT_LIMIT = 10_000
_LIST_LIMIT = 1_000
_EVENT_LIMIT_BYTES = 1_000_000
"""The server silently refuses events of 1.5 MB and more; related resources come on top."""
_BARE_LIMIT = 1_000
_FOLLOWS_LIMIT = timedelta(minutes=5)
_NOT_IN_PAYLOAD = {
    "id",
    "created",
    "updated",
    "flow_run_id",
    "state_id",
    "state_type",
    "state_name",
    "state",
    "estimated_start_time_delta",
    "estimated_run_time",
}
_IN_BARE_PAYLOAD = {
    "name",
    "task_key",
    "dynamic_key",
    "run_count",
    "start_time",
    "end_time",
    "total_run_time",
}

_log = logging.getLogger(__name__)


def _clip(text: str | None, limit: int = _MESSAGE_LIMIT) -> str | None:
    if text is None or len(text) <= limit:
        return text
    return text[: limit - 3] + "..."


def _state_payload(state: State[Any]) -> dict[str, Any]:
    return {
        "type": state.type.value,
        "name": state.name,
        "message": _clip(state.message),
        "state_details": state.state_details.model_dump(
            mode="json",
            exclude_none=True,
            exclude_unset=True,
            exclude={"flow_run_id", "task_run_id"},
        ),
    }


def state_event(
    task_run: TaskRun,
    initial: State[Any] | None,
    validated: State[Any],
    follows: tuple[UUID, Any] | None = None,
    *,
    persisted: bool = False,
) -> EventRecord:
    """The event that tells the server of `task_run`'s transition to `validated`.

    `follows` is `(event id, occurred)` of the event sent before for the same run;
    `persisted` says whether the result's metadata is to be recorded with the state.
    The payload has the shape that the server's task-run recorder reads
    (prefect.server.services.task_run_recorder, 3.8).

    Raises nothing: names, messages and tags may hold anything. Text that cannot be sent is shown as
    escapes, what is too large is shortened, and of a record that cannot be told in full the
    event says the state alone.
    """
    try:
        body = _whole_body(task_run, initial, validated, follows, persisted=persisted)
    except Exception as exc:  # noqa: BLE001 - without its event a run would stay open for ever
        _note_bare(exc)
        body = _bare_body(task_run, validated)
    return EventRecord(
        run_id=task_run.id,
        flow_run_id=task_run.flow_run_id,
        state_type=validated.type.value,
        state_name=clean(validated.name or "", "event"),
        tags=tuple(sorted({clean(str(tag), "event") for tag in task_run.tags})),
        body=body,
        name=clean(_clip(str(task_run.name), _NAME_LIMIT) or "", "event")
        if validated.is_final()
        else "",
    )


def _whole_body(
    task_run: TaskRun,
    initial: State[Any] | None,
    validated: State[Any],
    follows: tuple[UUID, Any] | None,
    *,
    persisted: bool,
) -> bytes:
    payload = _state_payload(validated)
    payload["data"] = (
        validated.data.metadata.model_dump(mode="json")
        if persisted and isinstance(validated.data, ResultRecord)
        else None
    )
    run = task_run.model_dump(mode="json", exclude_none=True, exclude=_NOT_IN_PAYLOAD)
    run["name"] = _clip(task_run.name, _NAME_LIMIT)
    event = {
        **_head(task_run, validated, _MESSAGE_LIMIT),
        "payload": {
            "intended": _intended(initial, validated),
            "initial_state": _state_payload(initial) if initial else None,
            "validated_state": payload,
            "task_run": run,
        },
    }
    if follows is not None and abs(validated.timestamp - follows[1]) < _FOLLOWS_LIMIT:
        event["follows"] = str(follows[0])
    body = to_json(event, "event")
    if len(body) > _EVENT_LIMIT_BYTES:
        fell_back(Fallback.OVERSIZED_EVENT)
        body = to_json(_shortened(event), "event")
        if len(body) > _EVENT_LIMIT_BYTES:
            raise ValueError(f"the event takes {len(body)} bytes even when its texts are short")
    return body[:-1]


def _head(task_run: TaskRun, validated: State[Any], message_limit: int) -> dict[str, Any]:
    """All of an event but its payload."""
    return {
        "occurred": validated.timestamp.isoformat(),
        "event": _clip(f"prefect.task-run.{validated.name}", _EVENT_NAME_LIMIT),
        "id": str(validated.id),
        "resource": {
            "prefect.resource.id": f"prefect.task-run.{task_run.id}",
            "prefect.resource.name": _clip(task_run.name, _NAME_LIMIT),
            "prefect.run-count": str(task_run.run_count),
            "prefect.state-message": _clip(validated.message, message_limit) or "",
            "prefect.state-name": validated.name or "",
            "prefect.state-timestamp": validated.timestamp.isoformat(),
            "prefect.state-type": validated.type.value,
            "prefect.orchestration": "client",
        },
    }


def _intended(initial: State[Any] | None, validated: State[Any]) -> dict[str, Any]:
    return {"from": initial.type.value if initial else None, "to": validated.type.value}


def _shortened(tree: Any) -> Any:
    """A tree whose texts and lists are all short."""
    if isinstance(tree, str):
        return _clip(tree, _SHORT_LIMIT)
    if isinstance(tree, dict):
        return {_clip(name, _SHORT_LIMIT): _shortened(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_shortened(value) for value in tree[:_LIST_LIMIT]]
    return tree


def _note_bare(exc: Exception) -> None:
    fell_back(Fallback.BARE_EVENT)
    _log.warning(
        "An event of a task run could not be told in full (%s); its state is told alone.",
        type(exc).__name__,
    )


def _bare_body(task_run: TaskRun, validated: State[Any]) -> bytes:
    """The least that the server needs to record a state."""
    run = {
        "name": _clip(str(task_run.name), _BARE_LIMIT),
        "task_key": _clip(str(task_run.task_key), _BARE_LIMIT),
        "dynamic_key": _clip(str(task_run.dynamic_key), _BARE_LIMIT),
        "run_count": task_run.run_count,
        "total_run_time": task_run.total_run_time.total_seconds(),
    }
    for name in ("start_time", "end_time"):
        if (moment := getattr(task_run, name)) is not None:
            run[name] = moment.isoformat()
    message = _clip(validated.message, _BARE_LIMIT)
    event = {
        **_head(task_run, validated, _BARE_LIMIT),
        "payload": {
            "intended": _intended(None, validated),
            "initial_state": None,
            "validated_state": {
                "type": validated.type.value,
                "name": _clip(validated.name, _BARE_LIMIT),
                "message": message,
                "state_details": {},
                "data": None,
            },
            "task_run": run,
        },
    }
    return to_json(event, "event")[:-1]


def bare(record: EventRecord) -> EventRecord:
    """`record` with no more than the server needs to record its state."""
    event = orjson.loads(record.body + b"}")
    payload = event["payload"]
    said, run = payload["validated_state"], payload.get("task_run", {})
    event["resource"] = {k: _clip(v, _BARE_LIMIT) for k, v in event["resource"].items()}
    event["payload"] = {
        "intended": payload.get("intended"),
        "initial_state": None,
        "validated_state": {
            "type": said["type"],
            "name": said["name"],
            "message": _clip(said.get("message"), _BARE_LIMIT),
            "state_details": {},
            "data": said.get("data"),
        },
        "task_run": {
            k: _clip(v, _BARE_LIMIT) if isinstance(v, str) else v
            for k, v in run.items()
            if k in _IN_BARE_PAYLOAD
        },
    }
    event.pop("follows", None)
    return record._replace(body=orjson.dumps(event)[:-1], tags=())


def complete_event(record: EventRecord, related: bytes) -> str:
    """The JSON text to send: `record` with its `related` resources (a JSON array)."""
    return (record.body + b',"related":' + related + b"}").decode()


def renewed(record: EventRecord) -> EventRecord:
    """`record` under a new event id: the server drops an id that it has seen lately."""
    event = orjson.loads(record.body + b"}")
    event["id"] = str(uuid7())
    event.pop("follows", None)
    return record._replace(body=orjson.dumps(event)[:-1])


def with_note(record: EventRecord, note: str) -> EventRecord:
    """`record` with `note` as its state's message, where it has none."""
    event = orjson.loads(record.body + b"}")
    state = event["payload"]["validated_state"]
    if not state.get("message"):
        state["message"] = note
        event["resource"]["prefect.state-message"] = note
    return record._replace(body=orjson.dumps(event)[:-1])
