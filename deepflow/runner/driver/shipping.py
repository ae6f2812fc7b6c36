"""What is shipped to the cluster once for many runs: contexts and the code of tasks.

Both lie on the scheduler under names of the session's own, as a Dask `Variable` does, until no run
needs them any more.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from contextlib import suppress
from typing import Any

from prefect.context import FlowRunContext, SettingsContext, TaskRunContext
from prefect.settings import PREFECT_API_URL
from prefect.tasks import Task

from deepflow.backend.contract import LAST_WILL, may_use
from deepflow.runner.driver.capturing import capture, persist_as_deepflow, to_blob
from deepflow.runner.driver.items import Code
from deepflow.runner.driver.references import References
from deepflow.runner.driver.transactions import open_transaction
from deepflow.runner.lru import LruCache
from deepflow.runner.wire import BlobRef, dumps

__all__ = ["Shipping"]

_INLINE_CODE_BYTES = 4096
_RECENT_CODE_BYTES = 16 << 20
_CAPTURED_WARN_BYTES = 1_000_000
_MAX_NESTED_CONTEXTS = 256


class Shipping:
    """What one session has shipped. Methods may be called from any thread."""

    def __init__(
        self,
        client: Any,
        logger: Any,
        *,
        salt: str,
        topic: str,
        events_topic: str,
        is_nested: bool,
        persists_as_deepflow: bool,
    ) -> None:
        self._client = client
        self._logger = logger
        self._salt = salt
        self._topics = (topic, events_topic)
        self._is_nested = is_nested
        self._persists_as_deepflow = persists_as_deepflow
        self._lock = threading.Lock()
        self._blobs: dict[str, BlobRef] = {}
        self._contexts: dict[Any, tuple[BlobRef, Any]] = {}
        self._codes: weakref.WeakValueDictionary[str, Code] = weakref.WeakValueDictionary()
        self._recent_codes: LruCache[Code] = LruCache(_RECENT_CODE_BYTES)
        self._has_warned_of_captured = False

    def _ship(self, digest: str, blob: bytes) -> BlobRef:
        """Put a blob on the scheduler under a name of this session's, once."""
        with self._lock:
            ref = self._blobs.get(digest)
            if ref is not None:
                return ref
        ref = BlobRef(f"deepflow-{self._salt}-{digest}", digest)
        self._put(ref, blob)
        with self._lock:
            self._blobs[digest] = ref
        return ref

    def _put(self, ref: BlobRef, blob: bytes) -> None:
        self._client.sync(
            self._client.scheduler.variable_set, name=ref.name, data=blob, client=self._client.id
        )

    def context(self) -> BlobRef:
        """The current Prefect context as it was shipped; captured when it is a new one."""
        flow_run, parent = FlowRunContext.get(), TaskRunContext.get()
        settings = SettingsContext.get()
        key = (
            flow_run.flow_run.id if flow_run and flow_run.flow_run else None,
            parent.task_run.id if parent else None,
            id(settings),
            open_transaction() is not None,
        )
        with self._lock:
            known = self._contexts.get(key)
        if known is not None:
            return known[0]
        captured = capture(_api_url(flow_run), *self._topics)
        if self._persists_as_deepflow:
            persist_as_deepflow(captured)
        digest, blob = to_blob(captured)
        ref = self._ship(digest, blob)
        with self._lock:
            if self._is_nested and len(self._contexts) > _MAX_NESTED_CONTEXTS:
                self._contexts.clear()
            # The settings are kept alive with the entry: its key holds their address.
            self._contexts[key] = (ref, (settings, blob))
        return ref

    def code(self, task: Task[Any, Any], references: References) -> Code:
        """The task's code as it is now; `references` finds the large values that it has captured.

        Globals, closures, defaults and what else cloudpickle finds are those of this moment.
        """
        blob = dumps(task, references.find)
        self._warn_of_captured(task, len(blob) + references.shared_bytes)
        if len(blob) <= _INLINE_CODE_BYTES:
            return Code(blob, None)
        digest = hashlib.blake2b(blob, digest_size=16).hexdigest()
        with self._lock:
            code = self._codes.get(digest)
        if code is None:
            ref = BlobRef(f"deepflow-{self._salt}-{digest}", digest)
            self._put(ref, blob)
            code = Code(blob, ref)
            with self._lock:
                self._codes[digest] = code
            weakref.finalize(code, _take_back, weakref.ref(self._client), ref.name).atexit = False
        with self._lock:
            # Kept even when no run needs it just now: a loop that submits and waits would
            # otherwise send it anew each time.
            self._recent_codes.put(digest, code, len(blob))
        return code

    def _warn_of_captured(self, task: Task[Any, Any], n_bytes: int) -> None:
        if n_bytes <= _CAPTURED_WARN_BYTES or self._has_warned_of_captured:
            return
        self._has_warned_of_captured = True
        self._logger.warning(
            "The code of task %r has captured %.1f MB of data (in globals, closures or defaults), "
            "which is looked at at each submit. Pass it as an argument.",
            task.name,
            n_bytes / 1e6,
        )

    def ship_again(self, code: Code, context: BlobRef) -> None:
        """Put back what the scheduler has lost."""
        if code.ref is not None:
            self._put(code.ref, code.blob)
        for ref, (_, context_blob) in list(self._contexts.values()):
            if ref == context:
                self._put(ref, context_blob)

    def take_back(self) -> None:
        """Have the scheduler forget all of it."""
        if not may_use(LAST_WILL):
            return
        codes = [code.ref for code in self._codes.values() if code.ref is not None]
        for ref in (*self._blobs.values(), *codes):
            self._client._send_to_scheduler({"op": "variable_delete", "name": ref.name})


def _take_back(client: weakref.ref[Any], name: str) -> None:
    """Let the scheduler forget code that no run needs any more. Called by the collector."""
    known = client()
    if known is not None and known.status == "running" and may_use(LAST_WILL):
        with suppress(RuntimeError):  # the event loop is closed: the cluster goes as well
            known._send_to_scheduler({"op": "variable_delete", "name": name})


def _api_url(flow_run: FlowRunContext | None) -> str:
    """The API that this process speaks to, also where Prefect started an ephemeral one."""
    url = PREFECT_API_URL.value()
    if url:
        return str(url)
    if flow_run is not None and flow_run.client is not None:
        return str(flow_run.client.api_url)
    from prefect.client.orchestration import get_client

    return str(get_client(sync_client=True).api_url)
