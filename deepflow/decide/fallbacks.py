"""The ways that are taken because the better one failed: one vocabulary for all rooms.

`observe/fallbacks.py` counts them and says them once.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Fallback"]


class Fallback(StrEnum):
    """A way that is taken because the better one failed; its value is the metric's label `kind`."""

    meaning: str
    """What happened, and what was done instead."""

    def __new__(cls, kind: str, meaning: str = "") -> Fallback:
        member = str.__new__(cls, kind)
        member._value_ = kind
        member.meaning = meaning
        return member

    ARGUMENT_NOT_SHAREABLE = (
        "argument_not_shareable",
        "a large argument cannot be sent apart from its call; it goes with the call",
    )
    BARE_EVENT = (
        "bare_event",
        "an event cannot be sent as it is; the server is told the state alone",
    )
    CALLBACK_FAILED = "callback_failed", "a function given to `add_done_callback` raised an error"
    CALLBACK_LEFT_BEHIND = (
        "callback_left_behind",
        "functions given to `add_done_callback` had not returned when the flow run ended",
    )
    CANCEL_NOT_DELIVERED = (
        "cancel_not_delivered",
        "workers could not be told to stop a run; it is given up after some seconds",
    )
    CANCELLATION_NOT_RECORDED = (
        "cancellation_not_recorded",
        "the server could not be told that a cancelled flow run has ended",
    )
    CANCELLATION_UNKNOWN = (
        "cancellation_unknown",
        "the server could not be asked whether the flow run is being cancelled",
    )
    DAMAGED_TRANSFER = (
        "damaged_transfer",
        "a result arrived damaged; it was fetched again by Dask's own way",
    )
    DISPATCHER_FAULT = (
        "dispatcher_fault",
        "a step of the driver's dispatcher failed; its thread goes on",
    )
    FETCH_FAILED = (
        "fetch_failed",
        "a result could not be fetched the fast way; Dask's own way was taken",
    )
    FLOW_PARAMETERS_LEFT_OUT = (
        "flow_parameters_left_out",
        "a flow's parameter cannot be pickled; tasks do not see it in `prefect.runtime`",
    )
    FLOW_PARAMETERS_SHARED = (
        "flow_parameters_shared",
        "a flow's parameters cannot be copied; the runs of a worker share them",
    )
    FOREIGN_WORKER_DATA = (
        "foreign_worker_data",
        "a worker keeps its data in a mapping of its own; it has no tiers",
    )
    HISTORY = "history", "the history could not be read or written; run times are learned anew"
    INPUT_SHARED = (
        "input_shared",
        "an input cannot be copied; runs in one process share it, as under Dask",
    )
    LEFT_BEHIND_NOT_RECORDED = (
        "left_behind_not_recorded",
        "the runs of a killed driver could not be set to Crashed; the next driver tries",
    )
    MEMORY_PRESSURE = "memory_pressure", "a thread waited 30 s for memory and went on"
    MEMORY_SHORT = "memory_short", "a value could not be read back for lack of memory, for now"
    METRICS_PORT_TAKEN = (
        "metrics_port_taken",
        "the port for metrics is taken; this flow run exports none",
    )
    NEAR_FAILED = (
        "near_failed",
        "where a task's `near=` lies could not be found out; it runs anywhere",
    )
    NEAR_TIMEOUT = (
        "near_timeout",
        "where a task's `near=` lies was not known in time; it runs anywhere",
    )
    NEAR_UNKNOWN = "near_unknown", "nothing knows where a task's `near=` lies; it runs anywhere"
    NO_FORECAST = "no_forecast", "the report lacks what the simulator says"
    NO_NOTE_OF_DRIVER = (
        "no_note_of_driver",
        "no note of the driver could be left; should it be killed, its runs stay Running",
    )
    NO_SHARED_MEMORY = (
        "no_shared_memory",
        "a host has no shared memory to use; results are copied between its processes",
    )
    NOT_EVICTABLE = "not_evictable", "a value cannot leave the memory"
    NOT_SHAREABLE = "not_shareable", "a result cannot be laid into shared memory; it is copied"
    NOWHERE_TO_EVICT = "nowhere_to_evict", "memory is full, and no tier has room"
    OVERSIZED_EVENT = "oversized_event", "an event was too large and was shortened"
    PICKED_ANEW = (
        "picked_anew",
        "the connection to the scheduler was lost, and another way to it was picked",
    )
    PICKLED_PLAINLY = "pickled_plainly", "a value cannot be taken apart; it was pickled as a whole"
    PLACEMENT_OFF = "placement_off", "Dask places the tasks of this flow run"
    PLACEMENT_RECORD = (
        "placement_record",
        "the journal, the history or the report could not be written",
    )
    PROCESSING_UNKNOWN = "processing_unknown", "Dask did not say which tasks its workers have"
    RECORDER_PROBE_EXPIRED = (
        "recorder_probe_expired",
        "the server did not show an event in time; what is missing is sent at the end",
    )
    RELATED_UNKNOWN = (
        "related_unknown",
        "the server did not say what belongs to the flow run; events name the flow run alone",
    )
    REPLICA_LOST = (
        "replica_lost",
        "a stored copy of a result was lost or damaged; it is computed again",
    )
    REPORT_MISSING = "report_missing", "a worker's report was lost; the result itself was read"
    RUN_OUTSIDE_OF_TRANSACTION = (
        "run_outside_of_transaction",
        "a run with hooks is submitted in a transaction that does not reach it",
    )
    SERVER_UNREACHABLE = (
        "server_unreachable",
        "the Prefect server did not answer; events are kept and sent later",
    )
    SERVICE_FAULT = "service_fault", "a step of a background thread failed; the thread goes on"
    SHARED_MEMORY_FULL = (
        "shared_memory_full",
        "shared memory is full; results are sent or copied instead",
    )
    SHARED_SEGMENT_GONE = (
        "shared_segment_gone",
        "a segment of shared memory was gone; its result was fetched again",
    )
    STREAM_FAILED = (
        "stream_failed",
        "a connection for large results could not be used; Dask's own was",
    )
    THREAD_ABANDONED = (
        "thread_abandoned",
        "a task did not stop at its timeout; its thread was left behind",
    )
    TIER_WRITE_FAILED = (
        "tier_write_failed",
        "a result could not be written to a tier; it stays in memory for now",
    )
    UNENCODABLE_TEXT = "unencodable_text", "text that is not UTF-8 was sent with backslash escapes"
    UNKNOWN_DASK = (
        "unknown_dask",
        "a private part of Dask is not as expected; what needed it is done in Dask's plain way",
    )
    UNKNOWN_PREFECT = (
        "unknown_prefect",
        "a private part of Prefect is not as expected; what needed it is done in its plain way",
    )
    UNPICKLABLE_EXCEPTION = (
        "unpicklable_exception",
        "an exception does not come out of its pickle; it was rebuilt",
    )
    UNPICKLABLE_RESULT = "unpicklable_result", "a result cannot leave the process that made it"
    WORKER_UNREACHABLE = (
        "worker_unreachable",
        "the driver cannot reach a worker; results come by way of the scheduler",
    )
