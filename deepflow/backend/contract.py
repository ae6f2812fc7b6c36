"""Every private part of Dask and Prefect that deepflow leans on, in one table.

Neither package promises to keep these parts. So each is named here with what it is for and the
form that it had in the versions that were tested. A feature asks `may_use` at its start. Where
all its parts are as expected, it goes on. Else it leaves the matter to Dask or Prefect, which is
said once and counted, or it refuses with an error that names the part: `Feature.without` says
which. `deepflow version` shows the table.

The table imports neither package. It is long, and in one file, because it is one table: a row is a
fact, and the rows of one feature stand together.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from deepflow.backend.parts import Part, exactly, held, source, takes, there
from deepflow.errors import IncompatibleVersionError
from deepflow.observe.fallbacks import Fallback, SaidOnce, fell_back

__all__ = ["CONTRACT", "Feature", "Row", "differences", "forget", "may_use", "rows"]

_log = logging.getLogger("deepflow.contract")


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that deepflow does with private parts."""

    name: str
    without: str
    """What happens where a part is not as expected; a clause."""
    is_needed: bool = False
    """Whether deepflow refuses to start without it."""


PLACEMENT: Final = Feature("placement", "Dask places every task")
TRANSFER: Final = Feature("transfer", "results travel between workers as Dask sends them")
FETCHING: Final = Feature("fetching", "the driver gathers results by Dask's public `gather`")
TIERS: Final = Feature("tiers", "Dask spills results to disk")
DEATHS: Final = Feature(
    "deaths of workers",
    "Dask tries the tasks of a dead worker elsewhere, as often as its own setting says, before the "
    "driver hears of it",
)
LAST_WILL: Final = Feature(
    "killed drivers",
    "what a driver puts on the scheduler stays there, and a killed driver's task runs go on",
)
SENDING: Final = Feature("sending", "each Dask task is sent by itself, by Dask's public `submit`")
RECONNECTING: Final = Feature(
    "reconnecting", "a client of `auto://` connects again by the way that it had before"
)
SLOTS: Final = Feature(
    "worker slots",
    "a task that waits for another one keeps its worker thread, as under prefect-dask",
)
FORKED_WORKERS: Final = Feature(
    "forked workers", "each worker of an embedded cluster imports its libraries for itself"
)
RESTARTS: Final = Feature(
    "restarts", "an embedded cluster waits 15 s, not 120, for a worker that died to be back"
)
QUIET_LOGS: Final = Feature("quiet logs", "Dask logs at its own level")
JUDGE: Final = Feature(
    "simulator", "`deepflow simulate` and `replay` refuse to run", is_needed=True
)
RUNNING: Final = Feature("running tasks", "workers refuse to run Prefect's tasks", is_needed=True)
CONTEXTS: Final = Feature("contexts", "the task runner refuses to start", is_needed=True)
SUBMITTING: Final = Feature("submitting", "the task runner refuses to start", is_needed=True)
RECORDING: Final = Feature("recording", "the task runner refuses to start", is_needed=True)
PLAIN_CLIENT: Final = Feature(
    "plain client", "`DeepflowClient` refuses to run Prefect's tasks", is_needed=True
)
SERVER: Final = Feature("embedded server", "`EmbeddedServer` refuses to start", is_needed=True)
STORED_RESULTS: Final = Feature("persisted results", "Prefect lays out persisted results itself")
TRANSACTIONS: Final = Feature(
    "transactions",
    "each run on a worker commits on its own, whatever transaction the flow has open",
)
ODD_TEXT: Final = Feature(
    "odd text", "a request to the server with text that is not UTF-8 fails, as under Prefect alone"
)
LAST_LINES: Final = Feature("last log lines", "a worker that leaves may take log lines with it")

_SCHEDULER: Final = "distributed.scheduler.Scheduler"
_WORKER: Final = "distributed.worker.Worker"
_STATES: Final = "distributed.worker_state_machine"
_ENGINE: Final = "prefect.task_engine"
_RECORDS: Final = "prefect._internal.result_records"
_STORE: Final = "prefect.results.ResultStore"

CONTRACT: Final[dict[Feature, tuple[Part, ...]]] = {
    PLACEMENT: (
        held(
            f"{_SCHEDULER}._TRANSITIONS_TABLE",
            "The scheduler looks transitions up in it; four entries are replaced in a copy.",
        ),
        source(
            f"{_SCHEDULER}._transition_waiting_processing",
            "A task whose inputs are there is queued instead of being given a worker.",
            "c41db55c6ded",
        ),
        source(
            f"{_SCHEDULER}._transition_waiting_queued",
            "A queued task is also entered in the table of ready tasks.",
            "1919b8fb747c",
        ),
        source(
            f"{_SCHEDULER}._transition_queued_processing",
            "A queued task gets the worker that was chosen for it.",
            "3ad57435f397",
        ),
        source(
            f"{_SCHEDULER}._transition_queued_released",
            "A queued task that is cancelled leaves the table of ready tasks.",
            "34bb08d2dbe1",
        ),
        source(
            f"{_SCHEDULER}._transition_no_worker_processing",
            "A task that no worker could take is queued when one has come.",
            "ddcc0c54d03d",
        ),
        source(
            f"{_SCHEDULER}.stimulus_queue_slots_maybe_opened",
            "Tasks are handed out where Dask would hand out queued ones.",
            "3e294d5d9a36",
        ),
        source(
            f"{_SCHEDULER}.transitions",
            "After each batch of transitions, new ready tasks are looked at.",
            "0566a399a1d1",
        ),
        source(
            f"{_SCHEDULER}._transitions",
            "Recommended transitions are carried out in this order.",
            {"2026.3.0": "a3159ee3a07d", "2026.7.1 and later": "37dd79713533"},
        ),
        source(
            f"{_SCHEDULER}._add_to_processing",
            "A task is given to the worker that was chosen for it.",
            "8d51f63d11c6",
        ),
        source(
            f"{_SCHEDULER}.decide_worker_non_rootish",
            "Dask chooses the worker where deciding has failed.",
            "7bb96b22be76",
        ),
        exactly(
            f"{_SCHEDULER}.validate_queued",
            "A queued task may also be confined to some workers.",
            "self, key",
        ),
        exactly(
            f"{_SCHEDULER}.handle_worker_status_change",
            "A worker that pauses is known at once.",
            "self, status, worker, stimulus_id",
        ),
        exactly(
            f"{_SCHEDULER}.remove_plugin",
            "When the plugin is taken away, Dask places again.",
            "self, name",
        ),
        exactly(
            f"{_SCHEDULER}.handle_long_running",
            "A thread that its task has left is free again.",
            "self, key, worker, run_id, compute_duration, stimulus_id",
        ),
        takes(
            f"{_SCHEDULER}._reschedule",
            "A task that a worker gave back is ready again.",
            "self, key, *, stimulus_id",
        ),
        takes(
            f"{_SCHEDULER}.worker_send",
            "A worker is asked to give back a task that it has not begun.",
            "self, worker, msg",
        ),
        held(f"{_SCHEDULER}.queued", "Ready tasks wait in it."),
        held(f"{_SCHEDULER}.unrunnable", "A task leaves it when a worker has come that may do."),
        held(f"{_SCHEDULER}.running", "Workers that take tasks."),
        held(f"{_SCHEDULER}.bandwidth_workers", "Measured bandwidth between two workers."),
        held(f"{_SCHEDULER}.stream_handlers", "What workers say is heard before Dask hears it."),
        there(
            "distributed.scheduler.TaskState.worker_restrictions",
            "The workers that a task is confined to.",
        ),
        there(
            "distributed.scheduler.TaskState.host_restrictions",
            "The hosts that a task is confined to.",
        ),
        there(
            "distributed.scheduler.TaskState.loose_restrictions",
            "Whether being confined is only a wish.",
        ),
        there(
            "distributed.scheduler.TaskState.resource_restrictions",
            "The resources that a task needs; a GPU that was granted is added.",
        ),
        takes(
            "distributed.stealing.WorkStealing.start",
            "Work stealing goes on when Dask places again.",
            "self",
        ),
        takes(
            "distributed.stealing.WorkStealing.stop",
            "Work stealing would undo what was placed well.",
            "self",
        ),
        takes(
            "distributed.stealing.WorkStealing.move_task_confirm",
            "Answers to Dask's own requests are handed on to it.",
            "self, *, key, state, stimulus_id, worker",
        ),
    ),
    TRANSFER: (
        exactly(
            f"{_WORKER}.gather_dep",
            "A worker takes values from a peer with deepflow in its own way.",
            "self, worker, to_gather, total_nbytes, *, stimulus_id",
        ),
        takes(f"{_WORKER}._get_cause", "A transfer is booked on a task.", "self, keys"),
        takes(
            f"{_WORKER}._update_metrics_received_data",
            "Dask learns the bandwidth from deepflow's transfers, too.",
            "self, start, stop, data, cause, worker",
        ),
        takes(
            f"{_STATES}.GatherDepSuccessEvent",
            "Values have come.",
            "stimulus_id, worker, total_nbytes, data",
        ),
        takes(
            f"{_STATES}.GatherDepBusyEvent",
            "The peer is busy, and is asked again later.",
            "stimulus_id, worker, total_nbytes",
        ),
        takes(
            f"{_STATES}.GatherDepNetworkFailureEvent",
            "The peer is gone.",
            "stimulus_id, worker, total_nbytes",
        ),
        held(f"{_WORKER}.handlers", "Peers ask a handler of deepflow's for values."),
        held(f"{_WORKER}.transfer_outgoing_count", "A worker that sends much says it is busy."),
        held(f"{_WORKER}.transfer_outgoing_count_limit", "As many transfers at once, as in Dask."),
        held(f"{_WORKER}.transfer_outgoing_count_total", "Transfers are counted for Dask."),
        held(f"{_WORKER}.transfer_outgoing_bytes", "Bytes under way are counted for Dask."),
        held(f"{_WORKER}.transfer_outgoing_bytes_total", "Bytes sent are counted for Dask."),
        held(f"{_STATES}.WorkerState.log", "Transfers stand in the worker's log."),
        held(f"{_STATES}.WorkerState.actors", "Actors are left to Dask."),
        takes("distributed.core.ConnectionPool.connect", "A connection to a peer.", "self, addr"),
        takes(
            "distributed.core.ConnectionPool.reuse", "It is used again later.", "self, addr, comm"
        ),
        takes("distributed.core.send_recv", "A question to a peer, and its answer.", "comm"),
        takes(
            "distributed.metrics.context_meter.meter",
            "Seconds on the network are counted for Dask.",
            "label, *, func",
        ),
    ),
    FETCHING: (
        takes(
            "distributed.client.Client._gather",
            "Results are gathered straight from their workers.",
            "self, futures, *, direct",
        ),
        held("distributed.client.Future._state", "Whether a result is there."),
        takes(
            "distributed.client.FutureState.wait", "Waits for a result without its value.", "self"
        ),
        held("distributed.client.Client.rpc", "Connections to workers that hold results."),
        held("distributed.client.Client.connection_args", "How to connect to a worker."),
        takes(f"{_SCHEDULER}.get_who_has", "The workers that hold a result.", "self, *, keys"),
        takes("distributed.comm.core.connect", "Tries whether a worker answers.", "addr, timeout"),
    ),
    TIERS: (
        held(f"{_WORKER}.memory_manager", "The limits of a worker's memory."),
        held(
            "distributed.worker_memory.WorkerMemoryManager.data",
            "The mapping that holds results is exchanged for the tiers.",
        ),
        held(
            "distributed.worker_memory.WorkerMemoryManager.memory_limit",
            "How much a worker may have.",
        ),
        held(
            "distributed.worker_memory.WorkerMemoryManager.memory_target_fraction",
            "The part of it that results may take.",
        ),
        held(
            "distributed.worker_memory.WorkerMemoryManager.memory_spill_fraction",
            "The same, where the first is switched off.",
        ),
        held(f"{_STATES}.WorkerState.data", "The same mapping, as the state machine has it."),
        held(f"{_STATES}.WorkerState.ready", "Tasks whose inputs will be read next."),
        held(f"{_STATES}.WorkerState.constrained", "The same, for tasks that need resources."),
        held(f"{_STATES}.WorkerState.tasks", "What depends on a value."),
        held(f"{_STATES}.TaskState.startstops", "What a value cost to compute."),
        held(f"{_STATES}.TaskState.dependents", "Who will read a value."),
        held(f"{_STATES}.TaskState.priority", "When it will be read."),
        held(f"{_WORKER}.active_keys", "Whether a task that reads a lost value is running."),
        takes(f"{_WORKER}.handle_stimulus", "A lost value is told to Dask.", "self, stims"),
        takes(f"{_STATES}.FreeKeysEvent", "A lost value is released.", "stimulus_id, keys"),
        there("distributed.spill.SpillBuffer", "Data in any other mapping is left alone."),
        held(f"{_WORKER}.monitor", "How large the process is."),
        takes(
            "distributed.system_monitor.SystemMonitor.get_process_memory",
            "How large the process is.",
            "self",
        ),
        takes("distributed.sizeof.safe_sizeof", "How large a value is.", "obj"),
    ),
    DEATHS: (
        there(
            "distributed.scheduler.TaskState.suspicious",
            "A task of deepflow's fails at the first death of a worker that it was on.",
        ),
        held(f"{_SCHEDULER}.allowed_failures", "How many deaths Dask itself would allow."),
    ),
    LAST_WILL: (
        takes(
            "distributed.client.Client._send_to_scheduler",
            "A session introduces itself, and lets go of what it put on the scheduler.",
            "self, msg",
        ),
        held(f"{_SCHEDULER}.stream_handlers", "The scheduler hears of sessions."),
        held(f"{_SCHEDULER}._ongoing_background_tasks", "Waits for a driver to come back."),
        takes(
            "distributed._async_taskgroup.AsyncTaskGroup.call_later",
            "Waits for a driver to come back.",
            "self, delay, afunc",
        ),
        held("distributed.variable.VariableExtension.variables", "What a session left behind."),
        takes(
            "distributed.variable.VariableExtension.delete",
            "Takes away what it left behind.",
            "self, *, name, client",
        ),
        takes(
            f"{_SCHEDULER}.broadcast", "Has a function called on workers.", "self, *, msg, workers"
        ),
    ),
    SENDING: (
        takes(
            "dask._expr.LLGExpr",
            "A graph with a given token is not hashed.",
            "dsk, *, _determ_token",
        ),
        takes("dask._task_spec.Task", "A task as Dask has it, without converting.", "key, func"),
        takes("dask._task_spec.TaskRef", "A dependency as Dask has it.", "key"),
    ),
    RECONNECTING: (
        exactly(
            "distributed.client.Client._ensure_connected",
            "The way to the scheduler is picked anew before connecting again.",
            "self, timeout",
        ),
        exactly(
            "distributed.client.Client._reconnect",
            "The way that broke is not kept.",
            "self",
        ),
    ),
    SLOTS: (
        held(
            "distributed.threadpoolexecutor.ThreadPoolExecutor._threads",
            "A thread that waits leaves the pool.",
        ),
        takes(
            "distributed.threadpoolexecutor.ThreadPoolExecutor._adjust_thread_count",
            "Another thread takes its place.",
            "self",
        ),
        held(
            "distributed.threadpoolexecutor.ThreadPoolExecutor._rejoin_list",
            "It queues for a place before it goes on.",
        ),
        held(
            "distributed.threadpoolexecutor.ThreadPoolExecutor._rejoin_lock",
            "Guards that queue.",
        ),
        there("distributed.threadpoolexecutor.threads_lock", "Guards the pool's threads."),
        there("distributed.threadpoolexecutor.thread_state", "The pool that a thread belongs to."),
        there("distributed.utils.thread_state", "The task that a thread runs."),
        takes("distributed.utils.set_thread_state", "Shows that task in a lent thread.", ""),
        takes(
            f"{_STATES}.SecedeEvent",
            "The worker learns that a thread is free.",
            "stimulus_id, key, compute_duration",
        ),
        held(f"{_WORKER}.active_threads", "The thread that a task runs in, for the profile."),
        held(f"{_WORKER}.active_threads_lock", "Guards that mapping."),
    ),
    FORKED_WORKERS: (
        there(
            "distributed.utils._forkserver_preload_set",
            "Without it Dask preloads all optional packages that are installed.",
        ),
        exactly(
            "distributed.nanny.Nanny.instantiate",
            "Dask forks while a worker is being started.",
            "self",
        ),
        held("distributed.nanny.Nanny.preload", "A worker begins with a function of deepflow's."),
        held("distributed.nanny.Nanny.preload_argv", "The arguments of that function."),
        held("distributed.nanny.Nanny.pre_spawn_env", "Variables that a worker is to have."),
        held("distributed.nanny.Nanny.env", "Variables that a worker is to have."),
        held("distributed.nanny.Nanny.config", "Carries them to the worker."),
        held("distributed.nanny.WorkerProcess.config", "The same, at a restart."),
    ),
    RESTARTS: (
        exactly(
            "distributed.deploy.spec.SpecCluster._update_worker_status",
            "A longer patience is in force while a lost worker is dealt with.",
            "self, op, msg",
        ),
    ),
    QUIET_LOGS: (
        there(f"{_SCHEDULER}._instances", "Whether Dask's servers run in this process."),
        there(f"{_WORKER}._instances", "Whether Dask's servers run in this process."),
        there("distributed.nanny.Nanny._instances", "Whether Dask's servers run in this process."),
        there(
            "distributed.deploy.spec.SpecCluster._instances", "Whether a cluster object made them."
        ),
    ),
    JUDGE: (
        there("distributed.scheduler.time", "The scheduler reads virtual time."),
        there("distributed.scheduler.monotonic", "The scheduler reads virtual time."),
        there("distributed.stealing.time", "Work stealing reads virtual time."),
        there("distributed.active_memory_manager.time", "Replicas are handled in virtual time."),
        there(f"{_STATES}.time", "Workers read virtual time."),
        there(f"{_STATES}.monotonic", "Workers read virtual time."),
        there("distributed.scheduler.BatchedSend", "Messages go to the simulation."),
        there("distributed.scheduler.setproctitle", "The process keeps its title."),
        takes(
            _SCHEDULER,
            "The real scheduler, never started.",
            "*, dashboard, validate, extensions, needs_workdir",
        ),
        exactly(
            f"{_SCHEDULER}.start_http_server",
            "No web server is started.",
            "self, routes, dashboard_address, default_port, ssl_options",
        ),
        exactly(f"{_SCHEDULER}._setup_logging", "No log handler is made.", "self, logger"),
        exactly(
            f"{_SCHEDULER}.handle_worker",
            "The simulation hands over what a worker says.",
            "self, comm, worker",
        ),
        held(f"{_SCHEDULER}._updated_sys_path", "The path of imports stays as it was."),
        held(f"{_SCHEDULER}.stream_comms", "What the scheduler sends to a worker."),
        held(f"{_SCHEDULER}.client_comms", "What the scheduler sends to a client."),
        held(f"{_SCHEDULER}.stream_handlers", "What the scheduler hears of workers."),
        held(f"{_SCHEDULER}.periodic_callbacks", "They are called in virtual time."),
        takes(
            f"{_SCHEDULER}._create_taskstate_from_graph",
            "A job's graph comes to the scheduler.",
            "self, *, start, dsk, keys, ordered, client, annotations_by_type, global_annotations, "
            "stimulus_id, submitting_task, span_metadata",
        ),
        takes(
            f"{_SCHEDULER}.add_worker",
            "A worker joins.",
            "self, comm, *, address, status, server_id, nthreads, name, resolve_address, now, "
            "resources, memory_limit, metrics, services, local_directory, versions, nanny, extra, "
            "stimulus_id",
        ),
        takes(
            f"{_SCHEDULER}.remove_worker", "A worker dies.", "self, address, *, stimulus_id, close"
        ),
        takes(f"{_SCHEDULER}.remove_client", "A job is over.", "self, client"),
        takes(
            f"{_SCHEDULER}.heartbeat_worker",
            "A worker tells how it is.",
            "self, *, address, resolve_address, now, metrics, executing",
        ),
        takes("distributed.scheduler.heartbeat_interval", "How often it does.", "n"),
        takes("distributed.scheduler.ClientState", "A job's client.", "client"),
        takes(
            "distributed.scheduler.TaskPrefix.add_exec_time",
            "A task that runs for long is noticed.",
            "self, duration",
        ),
        exactly(
            "distributed.scheduler.SchedulerState.valid_workers",
            "Its result is ordered, so that the same seed gives the same run.",
            "self, ts",
        ),
        takes(
            "distributed.active_memory_manager.ActiveMemoryManagerExtension",
            "Replicas are handled as in a live scheduler.",
            "scheduler",
        ),
        takes("distributed.stealing.WorkStealing.start", "Its timer is taken over.", "self"),
        takes(
            f"{_STATES}.WorkerState",
            "The real state machine of a worker.",
            "*, nthreads, address, resources, transfer_incoming_count_limit, "
            "transfer_incoming_bytes_limit, transfer_message_bytes_limit, validate",
        ),
        takes(f"{_STATES}.WorkerState.handle_stimulus", "It takes events.", "self, stims"),
        held(f"{_STATES}.WorkerState.rng", "It draws by the seed."),
        held(f"{_STATES}.WorkerState.data_needed", "It asks peers in a fixed order."),
        held(f"{_STATES}.WorkerState.in_flight_workers", "It takes values in a fixed order."),
        held(f"{_STATES}.WorkerState.missing_dep_flight", "Values that went missing."),
        held(f"{_STATES}.WorkerState.task_counter", "Told in heartbeats."),
        there(f"{_STATES}.TaskState.__hash__", "Sets of tasks are ordered by the seed."),
        exactly(
            f"{_STATES}.ComputeTaskEvent.to_loggable",
            "No copy is made for a log that is not kept.",
            "self, *, handled",
        ),
        takes(
            f"{_STATES}.ExecuteSuccessEvent",
            "A task has run.",
            "*, stimulus_id, key, run_id, value, start, stop, nbytes, type",
        ),
        takes(
            f"{_STATES}.GatherDepSuccessEvent",
            "Values have come.",
            "*, stimulus_id, worker, total_nbytes, data",
        ),
        takes(
            f"{_STATES}.GatherDepBusyEvent",
            "A peer is busy.",
            "*, stimulus_id, worker, total_nbytes",
        ),
        takes(
            f"{_STATES}.GatherDepNetworkFailureEvent",
            "A peer is gone.",
            "*, stimulus_id, worker, total_nbytes",
        ),
        takes(f"{_STATES}.RetryBusyWorkerEvent", "It is asked again.", "*, stimulus_id, worker"),
        takes(f"{_STATES}.FindMissingEvent", "Lost values are looked for.", "stimulus_id"),
        takes(f"{_STATES}.PauseEvent", "Memory is short.", "stimulus_id"),
        takes(f"{_STATES}.UnpauseEvent", "Memory is there again.", "stimulus_id"),
        takes(f"{_STATES}.SendMessageToScheduler.to_dict", "A message sets out.", "self"),
        held(f"{_STATES}.Execute.key", "A task is to run."),
        held(f"{_STATES}.GatherDep.to_gather", "Values are to be asked for."),
        held(f"{_STATES}.RetryBusyWorkerLater.worker", "A peer is to be asked again."),
        there("dask._task_spec.GraphNode", "A task of a graph that is never called."),
        takes("dask.order.order", "The order of a graph, as Dask has it.", "dsk"),
    ),
    RUNNING: (
        held(f"{_ENGINE}.BaseTaskRunEngine._telemetry", "Spans follow the state of a run."),
        held(f"{_ENGINE}.BaseTaskRunEngine._raised", "What a cancelled run raised."),
        exactly(
            f"{_ENGINE}.BaseTaskRunEngine._resolve_parameters",
            "An upstream run that failed fails this one.",
            "self",
        ),
        takes(
            f"{_ENGINE}.BaseTaskRunEngine._set_custom_task_run_name",
            "A run that goes on keeps its name.",
            "self",
        ),
        exactly(
            f"{_ENGINE}.BaseTaskRunEngine.compute_transaction_key",
            "A large input is not hashed for nothing.",
            "self",
        ),
        exactly(
            f"{_ENGINE}.BaseTaskRunEngine.log_finished_message",
            "A run that waits for its retry has not finished.",
            "self",
        ),
        exactly(
            f"{_ENGINE}.BaseTaskRunEngine.is_cancelled", "A run is cancelled from outside.", "self"
        ),
        exactly(
            f"{_ENGINE}.SyncTaskRunEngine.set_state",
            "Each state goes to the driver, which tells the server.",
            "self, state, force",
        ),
        exactly(f"{_ENGINE}.SyncTaskRunEngine.begin_run", "A retry goes on with its run.", "self"),
        exactly(
            f"{_ENGINE}.SyncTaskRunEngine.run_context",
            "A time-out also holds on a worker's thread.",
            "self",
        ),
        takes(f"{_ENGINE}.SyncTaskRunEngine.setup_run_context", "A run's contexts.", "self"),
        exactly(
            f"{_ENGINE}.SyncTaskRunEngine.transaction_context",
            "A run is part of its flow's transaction.",
            "self",
        ),
        exactly(
            f"{_ENGINE}.SyncTaskRunEngine.call_task_fn",
            "The user's function can be interrupted.",
            "self, transaction",
        ),
        takes(
            f"{_ENGINE}.SyncTaskRunEngine.handle_success",
            "A value becomes a state.",
            "self, result, transaction",
        ),
        takes(f"{_ENGINE}.SyncTaskRunEngine.handle_exception", "A run has failed.", "self, exc"),
        takes(f"{_ENGINE}.SyncTaskRunEngine.handle_timeout", "A run took too long.", "self, exc"),
        exactly(
            f"{_ENGINE}.SyncTaskRunEngine.handle_crash",
            "A cancelled run is no crash.",
            "self, exc",
        ),
        takes(f"{_ENGINE}.SyncTaskRunEngine.wait_until_ready", "A run waits its turn.", "self"),
        takes(f"{_ENGINE}.SyncTaskRunEngine.asset_context", "A run's assets.", "self"),
        takes(f"{_ENGINE}.SyncTaskRunEngine.start", "The engine begins.", "self, task_run_id"),
        exactly(
            f"{_ENGINE}.AsyncTaskRunEngine.set_state",
            "Each state goes to the driver, which tells the server.",
            "self, state, force",
        ),
        exactly(f"{_ENGINE}.AsyncTaskRunEngine.begin_run", "A retry goes on with its run.", "self"),
        exactly(
            f"{_ENGINE}.AsyncTaskRunEngine.transaction_context",
            "A run is part of its flow's transaction.",
            "self",
        ),
        exactly(
            f"{_ENGINE}.AsyncTaskRunEngine.call_task_fn",
            "The user's function can be interrupted.",
            "self, transaction",
        ),
        takes(
            f"{_ENGINE}.AsyncTaskRunEngine.handle_success",
            "A value becomes a state.",
            "self, result, transaction",
        ),
        exactly(
            f"{_ENGINE}.AsyncTaskRunEngine.handle_crash",
            "A cancelled run is no crash.",
            "self, exc",
        ),
        takes(f"{_ENGINE}.AsyncTaskRunEngine.run_context", "A run's contexts.", "self"),
        takes(f"{_ENGINE}.AsyncTaskRunEngine.wait_until_ready", "A run waits its turn.", "self"),
        takes(f"{_ENGINE}.AsyncTaskRunEngine.asset_context", "A run's assets.", "self"),
        takes(f"{_ENGINE}.AsyncTaskRunEngine.start", "The engine begins.", "self, task_run_id"),
        there(f"{_ENGINE}.TaskRunTimeoutError", "A time-out as Prefect tells it."),
        takes(
            "prefect.telemetry.run_telemetry.RunTelemetry.update_state",
            "Spans follow the state of a run.",
            "self, new_state",
        ),
        takes(
            "prefect._internal.states.exception_to_failed_state_sync",
            "A run whose inputs cannot be had has failed.",
            "exc",
        ),
        takes(
            "prefect._flow_run_suspension.raise_if_flow_run_suspension_requested",
            "A suspended flow run stops its tasks.",
            "",
        ),
        takes(
            "prefect.utilities.engine.resolve_to_final_result",
            "The value of an upstream run.",
            "expr, context",
        ),
        takes(
            "prefect.utilities.engine.link_state_to_task_run_result",
            "Later runs know which run made a value.",
            "state, result",
        ),
        takes(
            "prefect.utilities.callables.call_with_parameters",
            "Calls the user's function.",
            "fn, parameters",
        ),
        takes(f"{_RECORDS}.ResultRecord", "A value with its record.", "*, metadata, result"),
    ),
    CONTEXTS: (
        takes("prefect.context.FlowRunContext.serialize", "The flow run's context.", "self"),
        takes("prefect.context.TaskRunContext.serialize", "The parent run's context.", "self"),
        held("prefect.context.FlowRunContext.run_results", "Each run has its own."),
        held("prefect.context.FlowRunContext.task_run_assets", "Each run has its own."),
        held("prefect.context.FlowRunContext.task_run_dynamic_keys", "Each run has its own."),
        held("prefect.context.FlowRunContext.result_store", "Each run has its own cache."),
        held("prefect.context.FlowRunContext.__var__", "The variable that holds the context."),
        held("prefect.context.TaskRunContext.__var__", "The variable that holds the context."),
        held("prefect.context.SettingsContext.__var__", "The variable that holds the settings."),
        held("prefect.context.TagsContext.__var__", "The variable that holds the tags."),
        held("prefect.context.AssetContext.__var__", "The variable that holds the assets."),
        held("prefect.context.SyncClientContext.__var__", "The variable that holds the client."),
        held(
            "prefect.context.SyncClientContext._context_stack",
            "The client stays open between runs.",
        ),
        held("prefect.context.AsyncClientContext.__var__", "The variable that holds the client."),
        held(
            "prefect.context.AsyncClientContext._context_stack",
            "The client stays open between runs.",
        ),
        there("prefect.context._deployment_id", "The variable that holds the deployment's id."),
        there(
            "prefect.context._deployment_parameters",
            "The variable that holds the deployment's parameters.",
        ),
        takes("prefect.context.serialize_context", "For isolated tasks.", ""),
        takes("prefect.context.hydrated_context", "For isolated tasks.", "serialized_context"),
        takes(
            "prefect.context.refresh_global_settings_context",
            "A forked worker reads its settings anew.",
            "",
        ),
        takes("prefect.logging.configuration.setup_logging", "Logging as the flow has it.", ""),
        takes("prefect.results.default_cache", "Each run has its own cache.", ""),
        there(f"{_RECORDS}.ResultRecordMetadata", "The contexts' models name it."),
    ),
    SUBMITTING: (
        takes(
            "prefect.tasks._infer_parent_task_runs",
            "The UI shows which run submitted which.",
            "flow_run_context, task_run_context, parameters",
        ),
        takes("prefect._internal.uuid7.uuid7", "The id of a run.", ""),
        takes(
            "prefect._flow_run_suspension.raise_if_flow_run_suspension_requested",
            "A suspended flow run submits nothing.",
            "",
        ),
        held("distributed.client.Future._state", "The error of a task, without asking for it."),
        held("distributed.client.FutureState.exception", "The error of a task."),
        held("prefect.task_runners.TaskRunner._started", "Whether the runner was entered."),
        exactly(
            "prefect.task_runners.TaskRunner.submit",
            "Prefect calls it.",
            "self, task, parameters, wait_for, dependencies",
        ),
        exactly(
            "prefect.task_runners.TaskRunner.map",
            "Prefect calls it.",
            "self, task, parameters, wait_for",
        ),
        held("prefect.futures.PrefectWrappedFuture._final_state", "Prefect reads it."),
        takes(
            "prefect.context.AssetContext.from_task_and_inputs",
            "A run's assets.",
            "*, task, task_run_id, task_inputs, copy_to_child_ctx",
        ),
        takes(
            "prefect.utilities.engine.collect_task_run_inputs_sync",
            "The runs that a parameter comes from.",
            "expr, *, max_depth",
        ),
        takes(
            "prefect.utilities.engine.resolve_inputs_sync",
            "The iterables of a map.",
            "parameters, *, max_depth",
        ),
        takes(
            "prefect.utilities.engine.get_state_for_result",
            "The run that made a value.",
            "obj",
        ),
        takes(
            "prefect.utilities.collections.visit_collection",
            "Futures are found where Prefect finds them.",
            "expr, visit_fn, *, return_data, context",
        ),
        takes(
            "prefect.utilities.callables.explode_variadic_parameter",
            "The parameters of a map.",
            "fn, parameters",
        ),
        takes(
            "prefect.utilities.callables.collapse_variadic_parameters",
            "The parameters of a map.",
            "fn, parameters",
        ),
        takes("prefect.utilities.callables.get_parameter_defaults", "Those not given.", "fn"),
        takes("prefect.types._datetime.now", "The time as Prefect has it.", "tz"),
        takes(
            "prefect.utilities.asyncutils.run_coro_as_sync", "Waits for a coroutine.", "coroutine"
        ),
        takes(f"{_SCHEDULER}.identity", "What the workers offer.", "self, *, n_workers"),
        takes(
            "distributed.protocol.serialize.pickle_loads",
            "Results come out of the frames that they travel in.",
            "header, frames",
        ),
        held(f"{_SCHEDULER}.extensions", "Variables hold what is sent once."),
        takes(
            "distributed.variable.VariableExtension.set",
            "What runs share is put on the scheduler.",
            "self, *, name, data, client",
        ),
        takes(
            "distributed.variable.VariableExtension.get",
            "Workers fetch what runs share.",
            "self, *, name, client, timeout",
        ),
        takes(
            "distributed.utils.sync", "A worker's thread waits for its event loop.", "loop, func"
        ),
    ),
    RECORDING: (
        takes("prefect.events.clients.get_events_client", "The stream of events.", ""),
        held("prefect.events.clients.PrefectEventsClient._websocket", "Finished JSON is sent."),
        takes(
            "prefect.events.clients.PrefectEventsClient._reconnect",
            "The stream is opened anew.",
            "self",
        ),
        takes(
            "prefect.events.related.related_resources_from_run_context",
            "What an event belongs to.",
            "client",
        ),
        held(
            "prefect.client.orchestration.PrefectClient._client",
            "Asks what the server has recorded, without validating it.",
        ),
        there("prefect.logging.loggers.flow_run_logger", "Lines that the UI shows."),
    ),
    PLAIN_CLIENT: (
        takes(
            f"{_ENGINE}.run_task_sync",
            "Runs a task in a given context.",
            "task, task_run_id, *, parameters, wait_for, return_type, dependencies, context",
        ),
        takes(
            f"{_ENGINE}.run_task_async",
            "Runs a task in a given context.",
            "task, task_run_id, *, parameters, wait_for, return_type, dependencies, context",
        ),
        takes("prefect.context.serialize_context", "The context as it travels.", ""),
        takes("prefect._internal.uuid7.uuid7", "The id of a run.", ""),
        takes(
            "prefect.utilities.callables.get_call_parameters",
            "The parameters of a call.",
            "fn, call_args, call_kwargs",
        ),
        takes(
            "prefect.utilities.engine.collect_task_run_inputs_sync",
            "The runs that a parameter comes from.",
            "expr",
        ),
    ),
    SERVER: (takes("prefect.cli.app", "Prefect's command line.", ""),),
    STORED_RESULTS: (
        exactly(f"{_STORE}._exists", "Whether a record is there and whole.", "self, key"),
        exactly(f"{_STORE}._aexists", "Whether a record is there and whole.", "self, key"),
        exactly(f"{_STORE}._read", "Reads a record in deepflow's layout.", "self, key, holder"),
        exactly(f"{_STORE}._aread", "Reads a record in deepflow's layout.", "self, key, holder"),
        exactly(
            f"{_STORE}._persist_result_record",
            "Writes a record in deepflow's layout.",
            "self, result_record, holder",
        ),
        exactly(
            f"{_STORE}._apersist_result_record",
            "Writes a record in deepflow's layout.",
            "self, result_record, holder",
        ),
        takes(f"{_STORE}._resolved_key_path", "The path of a key.", "self, key"),
        held(f"{_STORE}.metadata_storage", "A store with metadata apart is left to Prefect."),
        held(f"{_STORE}.cache", "What a run has read is kept for it."),
        takes(
            "prefect.filesystems.LocalFileSystem._resolve_path",
            "The path of a file.",
            "self, path",
        ),
        takes(f"{_RECORDS}.ResultRecord.serialize_result", "The bytes of a value.", "self"),
        takes(f"{_RECORDS}.ResultRecord.serialize_metadata", "The bytes of its record.", "self"),
        takes(f"{_RECORDS}.ResultRecord.deserialize", "Reads what Prefect wrote.", "data"),
        takes(f"{_RECORDS}.ResultRecord.mark_persisted", "A record is written.", "self"),
        takes(f"{_RECORDS}.ResultRecordMetadata.load_bytes", "Reads an older layout.", "data"),
    ),
    TRANSACTIONS: (
        held("prefect.transactions.BaseTransaction.__var__", "The transaction that is open."),
        held("prefect.transactions.BaseTransaction.children", "Those that are part of it."),
        held("prefect.transactions.BaseTransaction._stored_values", "What a run has set in it."),
        held("prefect.transactions.BaseTransaction._staged_value", "What it is to write."),
        takes("prefect.transactions.BaseTransaction.add_child", "Takes part.", "self, transaction"),
        exactly("prefect.transactions.Transaction.commit", "Runs commit in order.", "self"),
        exactly("prefect.transactions.Transaction.rollback", "They are rolled back.", "self"),
    ),
    ODD_TEXT: (
        held(
            "prefect.client.orchestration.PrefectClient._client",
            "What a request could not encode is sent as escapes.",
        ),
        there("prefect.logging.handlers.APILogHandler", "Lines are formatted with escapes."),
    ),
    LAST_LINES: (
        takes(
            "prefect.events.worker.EventsWorker.drain_all",
            "Sends events that are left.",
            "*, timeout, at_exit",
        ),
        takes(
            "prefect.logging.handlers.APILogWorker.drain_all",
            "Sends lines that are left.",
            "*, timeout, at_exit",
        ),
    ),
}
"""What each feature leans on."""


@cache
def differences(feature: Feature) -> tuple[str, ...]:
    """How the parts of a feature are not as expected, in words; empty where all are.

    Looked at once in a process.
    """
    return tuple(filter(None, (part.difference() for part in CONTRACT[feature])))


def may_use(feature: Feature) -> bool:
    """Whether a feature may reach for its private parts. Each feature asks this at its start.

    False: it leaves the matter to Dask or Prefect. That is said once in a process, and counted at
    each call.

    Raises:
        IncompatibleVersionError: deepflow cannot do without the feature.
    """
    unlike = differences(feature)
    if not unlike:
        return True
    package = unlike[0].partition(".")[0]  # each begins with the part's name
    if feature.is_needed:
        raise IncompatibleVersionError(
            f"{_installed(package)} is not one that this deepflow was written for "
            f"({'; '.join(unlike)}), so {feature.without}; install the versions in constraints.txt"
        )
    fell_back(
        Fallback.UNKNOWN_PREFECT if package == "prefect" else Fallback.UNKNOWN_DASK,
        _log,
        "The feature %r is off: %s. %s is not one that it was written for (%s); `deepflow "
        "version --wide` shows what is expected",
        feature.name,
        feature.without,
        _installed(package),
        "; ".join(unlike),
        once=_said,
        cause=feature,
    )
    return False


def forget() -> None:
    """Look at every part anew when it is asked for; say everything anew. For tests."""
    global _said
    differences.cache_clear()
    _said = SaidOnce()


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table, and how it is here."""

    feature: str
    without: str
    name: str
    purpose: str
    kind: str
    written_for: Mapping[str, str]
    difference: str
    """Empty where the part is as expected."""


def rows() -> Iterator[Row]:
    """The table with what is installed here. Imports Dask and Prefect, where they are."""
    for feature, parts in CONTRACT.items():
        for part in parts:
            yield Row(
                feature.name,
                feature.without,
                part.name,
                part.purpose,
                part.kind.value,
                part.written_for,
                part.difference(),
            )


_said = SaidOnce()


def _installed(package: str) -> str:
    """A package and its version, in words."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
