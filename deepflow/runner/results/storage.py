"""Where persisted results lie: the record's metadata and the value's bytes in one file.

Prefect puts both into one JSON document, with the bytes as base64. Here the file under the record's
key begins with the metadata and goes on with the bytes themselves. The file is in the storage that
the task has anyway, so no block is added. Prefect's own stores read it as well, once
`deepflow.runner.results.serializer` was imported. Earlier versions wrote the metadata into a second
file, `<key>.meta`: such records stay readable.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from prefect._internal.result_records import ResultRecord, ResultRecordMetadata
from prefect.filesystems import LocalFileSystem, WritableFileSystem
from prefect.results import ResultStore, get_default_result_storage
from prefect.types._datetime import now
from pydantic import PrivateAttr

from deepflow.backend.contract import STORED_RESULTS, may_use
from deepflow.errors import StoredResultError
from deepflow.intermediates.stored import address_of, is_packed, pack_record
from deepflow.observe import metrics
from deepflow.runner.results.serializer import DeepflowSerializer

logger = logging.getLogger("prefect.deepflow.results")

META_SUFFIX: Final = ".meta"
_ATTEMPTS: Final = 8
_FIRST_PAUSE_S: Final = 0.05
T = TypeVar("T")


class DeepflowResultStore(ResultStore):
    """Prefect's store with the layout above wherever the serializer is `deepflow`.

    Any other serializer, and a task whose cache policy names a `key_storage`, is left to Prefect.
    """

    _found: tuple[str, ResultRecord[Any]] | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, store: ResultStore) -> ResultStore:
        """`store` with this layout; the same storage, serializer and cache.

        Where Prefect's private parts are not as expected it stays as it is.
        """
        if not may_use(STORED_RESULTS):
            return store
        # exclude_unset: what was not said stays to be taken from Prefect's settings.
        said = {name: getattr(store, name) for name in store.model_fields_set}
        return cls.model_construct(**{**{n: getattr(store, n) for n in cls.model_fields}, **said})

    @property
    def _is_ours(self) -> bool:
        return self.metadata_storage is None and isinstance(self.serializer, DeepflowSerializer)

    @property
    def _files(self) -> Any:
        if self.result_storage is None:
            # `_sync` belongs to Prefect's dispatch decorator, whose annotation does not have it.
            storage = get_default_result_storage(_sync=True)  # type: ignore[call-arg]
            assert isinstance(storage, WritableFileSystem)
            self.result_storage = storage
        return self.result_storage

    def _exists(self, key: str) -> bool:
        """Whether the record is there and whole; a damaged one is counted and said, once."""
        if not self._is_ours:
            return super()._exists(key)
        try:
            record = self._load(key)
        except _Missing:
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is: computing again is right
            metrics.inc("deepflow_damaged_results_total")
            logger.warning("Persisted result %s cannot be used, so it is computed: %s", key, error)
            return False
        if record.expiration is not None and record.expiration <= now("UTC"):
            return False
        self._found = (key, record)
        return True

    async def _aexists(self, key: str) -> bool:
        return await asyncio.to_thread(self._exists, key)

    def _read(self, key: str, holder: str) -> ResultRecord[Any]:
        if not self._is_ours:
            return super()._read(key, holder)
        if self.lock_manager is not None and not self.is_lock_holder(key, holder):
            self.wait_for_lock(key)
        cached = self.cache.get(self._resolved_key_path(key))
        if cached is not None and (cached.expiration is None or cached.expiration > now("UTC")):
            return cached
        # What `exists` has just read and checked is not read again.
        found, self._found = self._found, None
        record = found[1] if found is not None and found[0] == key else self._load(key)
        record.mark_persisted()
        if self.cache_result_in_memory:
            self.cache[self._resolved_key_path(key)] = record
        return record

    async def _aread(self, key: str, holder: str) -> ResultRecord[Any]:
        return await asyncio.to_thread(self._read, key, holder)

    def _persist_result_record(self, result_record: ResultRecord[Any], holder: str) -> None:
        serializer = result_record.serializer
        if not self._is_ours or not isinstance(serializer, DeepflowSerializer):
            return super()._persist_result_record(result_record, holder)
        key = result_record.metadata.storage_key
        assert key is not None, "create_result_record gives every record a key"
        self._refuse_if_locked(key, holder)
        content = result_record.serialize_result()
        address = address_of(content)
        result_record.metadata.serializer = serializer.model_copy(update={"address": address})
        put_file(self._files, key, pack_record(result_record.serialize_metadata(), content))
        result_record.mark_persisted()
        if self.cache_result_in_memory:
            self.cache[key] = result_record
        return None

    async def _apersist_result_record(self, result_record: ResultRecord[Any], holder: str) -> None:
        await asyncio.to_thread(self._persist_result_record, result_record, holder)

    def _refuse_if_locked(self, key: str, holder: str) -> None:
        if self.lock_manager is None:
            return
        base = str(getattr(self._files, "_resolve_path", lambda _: "")("") or "").rstrip("/")
        short = key.removeprefix(base).lstrip("/") if base else key
        if self.is_locked(short) and not self.is_lock_holder(short, holder):
            raise RuntimeError(f"Cannot write result {short}: another holder has locked it.")

    def _load(self, key: str) -> ResultRecord[Any]:
        """The record under `key`, ours or one that Prefect wrote, checked and decoded."""
        content = get_file(self._files, key)
        if not is_packed(content):
            return ResultRecord.deserialize(content)
        said = get_file(self._files, key + META_SUFFIX)  # without it the writing was broken off
        metadata = ResultRecordMetadata.load_bytes(said)
        return ResultRecord(metadata=metadata, result=metadata.serializer.loads(content))


class _Missing(StoredResultError):
    """No such file."""


def put_file(storage: Any, key: str, content: bytes) -> None:
    """Write a file so that it is there whole or not at all; tried again where storage fails.

    Raises:
        StoredResultError: storage failed every time.
    """
    if type(storage) is LocalFileSystem:
        path = storage._resolve_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        return
    _again(lambda: storage.write_path(key, content=content, _sync=True), f"write {key}")


def get_file(storage: Any, key: str) -> bytes:
    """A file's content; tried again where storage fails, not where there is no such file.

    Raises:
        StoredResultError: there is none, or storage failed every time.
    """
    if type(storage) is LocalFileSystem:
        try:
            return Path(storage._resolve_path(key)).read_bytes()
        except FileNotFoundError as error:
            raise _Missing(f"there is no file {key}") from error
    content: bytes | None = _again(lambda: storage.read_path(key, _sync=True), f"read {key}")
    if content is None:
        raise _Missing(f"there is no file {key}")
    return content


def write_atomically(path: Path, content: bytes) -> None:
    """Write `path` beside its place, then put it there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _again(call: Callable[[], T], what: str) -> T:
    for attempt in range(_ATTEMPTS):
        try:
            return call()
        except FileNotFoundError as error:
            raise _Missing(f"could not {what}: there is no such file") from error
        except (OSError, RuntimeError, ConnectionError, TimeoutError) as error:
            last = error
            if attempt + 1 < _ATTEMPTS:
                metrics.inc("deepflow_result_storage_retries_total")
                _pause(min(1.0, _FIRST_PAUSE_S * 2**attempt))
    raise StoredResultError(
        f"could not {what}: result storage failed {_ATTEMPTS} times, at last with "
        f"{type(last).__name__}: {last}; see whether it is up and its credentials are right"
    ) from last


_pause = time.sleep
