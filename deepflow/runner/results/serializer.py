"""The Prefect result serializer `deepflow`: typed frames instead of base64 of a pickle.

`@task(persist_result=True, result_serializer="deepflow")`, `DeepflowSerializer()`, or the setting
`PREFECT_RESULTS_DEFAULT_SERIALIZER=deepflow`. The name is known once this module was imported,
which importing `deepflow.DeepflowTaskRunner` does.

From then on Prefect's own result stores read our records, too: a result that was persisted under
deepflow is found by the same task under Prefect's own task runners. A program that does not import
deepflow takes such a record for none, and computes.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, ClassVar

from prefect._internal.result_records import ResultRecord, ResultRecordMetadata
from prefect.serializers import Serializer
from pydantic import Field, ValidationError
from pydantic_core import SchemaSerializer, core_schema

from deepflow.errors import StoredResultError
from deepflow.intermediates.stored import (
    address_of,
    is_packed,
    is_record,
    pack,
    split_record,
    unpack,
)

_TEXT = b"deepflow64:"


class _Stored(bytes):
    """Packed bytes that turn into text where Prefect puts them into a JSON record.

    A serializer is not told whether its bytes will be a file of their own or a part of one.
    """

    __pydantic_serializer__: ClassVar[SchemaSerializer] = SchemaSerializer(
        core_schema.any_schema(
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda packed: (_TEXT + base64.b64encode(packed)).decode("ascii")
            )
        )
    )


class DeepflowSerializer(Serializer):
    """Values as compressed, checked frames; reads records of Prefect's own serializers too.

    ``address`` is the digest of the stored bytes, known once they are written. It is part of the
    record's metadata, and compared when the record is read.
    """

    type: str = Field(default="deepflow", frozen=True)
    address: str | None = None

    def dumps(self, obj: Any) -> bytes:
        """`obj` as the content of one file, see :func:`deepflow.intermediates.stored.pack`."""
        return _Stored(pack(obj))

    def loads(self, blob: bytes) -> Any:
        """The value of a file or of a record's part, also of one that Prefect wrote.

        Raises:
            StoredResultError: damaged, of no known format, or not what was written under the key.
        """
        if is_record(blob):
            blob = split_record(blob)[1]  # type: ignore[assignment]
        if bytes(memoryview(blob)[: len(_TEXT)]) == _TEXT:
            try:
                blob = base64.b64decode(memoryview(blob)[len(_TEXT) :], validate=True)
            except binascii.Error as error:
                raise StoredResultError(
                    f"the stored result is damaged ({error}); delete the record so that it is "
                    "computed again"
                ) from error
        if is_packed(blob):
            if self.address is not None and (found := address_of(blob)) != self.address:
                raise StoredResultError(
                    f"the stored result has the digest {found}, its metadata say {self.address}: "
                    "they were not written together; delete the record so that it is computed again"
                )
            return unpack(blob)
        return self._of_prefect(blob)

    def _of_prefect(self, blob: bytes) -> Any:
        """The value of a whole record as Prefect's own serializers write it."""
        try:
            return ResultRecord.deserialize(blob).result
        except ValidationError as error:
            raise StoredResultError(
                f"{len(blob):,} bytes are neither a stored result of deepflow nor a record of "
                "Prefect: damaged, or of another program; delete them to have it computed again"
            ) from error


_deserialize_of_prefect = ResultRecord.deserialize.__func__  # type: ignore[attr-defined]


def _deserialize(
    cls: type[ResultRecord[Any]], data: bytes, backup_serializer: Serializer | None = None
) -> ResultRecord[Any]:
    """A record from the content of its file, of ours or of Prefect's."""
    if not is_record(data):
        record: ResultRecord[Any] = _deserialize_of_prefect(cls, data, backup_serializer)
        return record
    said, content = split_record(data)
    metadata = ResultRecordMetadata.load_bytes(said)
    return cls(metadata=metadata, result=metadata.serializer.loads(content))  # type: ignore[arg-type]


# Every store of Prefect's reads its records through this one method.
ResultRecord.deserialize = classmethod(_deserialize)  # type: ignore[assignment,method-assign]
