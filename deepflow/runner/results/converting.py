"""Persisted records from one layout into the other, each whole at every moment.

A record in Prefect's layout is one JSON document, in ours one file of metadata and bytes. Earlier
versions had the metadata apart, in `<key>.meta`; such a record is brought into the layout of today,
and its metadata are removed after. Whenever it stops, the file under the key is one layout or the
other, and `DeepflowResultStore` reads all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import fsspec
from prefect._internal.result_records import ResultRecord, ResultRecordMetadata
from prefect.serializers import PickleSerializer, Serializer

from deepflow.errors import ConfigurationError, StoredResultError
from deepflow.intermediates.stored import address_of, is_packed, is_record, pack_record
from deepflow.runner.results.serializer import DeepflowSerializer
from deepflow.runner.results.storage import META_SUFFIX, write_atomically

Layout = Literal["deepflow", "prefect"]
Found = Literal["deepflow", "prefect", "apart"]
"""A layout, or that of earlier versions."""
Became = Literal["converted", "kept", "damaged"]
LAYOUTS: Final[tuple[Layout, ...]] = ("deepflow", "prefect")


class Converted(NamedTuple):
    """What became of one file; sizes in bytes, `why` in words where it is damaged."""

    name: str
    became: Became
    bytes_before: int
    bytes_after: int
    why: str = ""


class Folder:
    """The files under a path or fsspec URL."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        try:
            self.fs, root = fsspec.core.url_to_fs(url, **(options or {}))
        except ImportError as error:
            raise ConfigurationError(
                f"{url!r} needs a package that is not installed: {error}"
            ) from error
        except ValueError as error:
            raise ConfigurationError(
                f"{url!r} cannot be opened: {error}; give a path, or a URL of a storage that "
                "fsspec knows"
            ) from error
        self.root: str = root.rstrip("/")
        self.is_local = "file" in (
            (self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol
        )

    def exists(self) -> bool:
        """Whether there is anything: a folder, or an object under this name."""
        return bool(self.fs.exists(self.root))

    def names(self) -> list[str]:
        """Every record's name, sorted; neither metadata nor files that were being written."""
        self.fs.invalidate_cache()
        found = (path[len(self.root) :].lstrip("/") for path in self.fs.find(self.root))
        return sorted(
            name
            for name in found
            if not name.endswith(META_SUFFIX) and not name.rpartition("/")[2].startswith(".")
        )

    def read(self, name: str) -> bytes | None:
        """A file's content, None where there is none."""
        try:
            content: bytes = self.fs.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file: beside its place first where it is a disk, at once in an object store."""
        if self.is_local:
            path = Path(self.path(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        else:
            self.fs.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
            self.fs.pipe_file(self.path(name), content)

    def remove(self, name: str) -> None:
        """Remove a file that may be gone already."""
        try:
            self.fs.rm_file(self.path(name))
        except FileNotFoundError:
            return

    def path(self, name: str) -> str:
        """The file's path as its file system has it."""
        return f"{self.root}/{name}" if self.root else name


def convert(source: Folder, dest: Folder, layout: Layout) -> Iterator[Converted]:
    """Bring every record of `source` into `layout` in `dest`, which may be the same folder.

    A record that is there already is kept, so that what was broken off goes on where it stopped. A
    file that is no record, or a damaged one, is reported and left as it is.

    Raises:
        OSError: storage failed; what was converted stays so.
    """
    is_in_place = source.fs == dest.fs and source.root == dest.root
    for name in source.names():
        content = source.read(name) or b""
        try:
            if not is_in_place and _layout(dest, name) == layout:
                yield Converted(name, "kept", len(content), len(content))
                continue
            record, found = _record(source, name, content)
            if is_in_place and found == layout:
                dest.remove(name + META_SUFFIX)
                yield Converted(name, "kept", len(content), len(content))
                continue
            written = _write(dest, name, record, layout)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a record's pickle raises: it is named
            why = f"{type(error).__name__}: {error}"
            yield Converted(name, "damaged", len(content), len(content), why)
            continue
        yield Converted(name, "converted", len(content), written)


def _layout(folder: Folder, name: str) -> Found | None:
    """In which layout a whole record is there, None where there is none."""
    content = folder.read(name)
    if content is None:
        return None
    try:
        return _record(folder, name, content)[1]
    except OSError:
        raise
    except Exception:  # noqa: BLE001 - what cannot be read is written anew
        return None


def _record(folder: Folder, name: str, content: bytes) -> tuple[ResultRecord[Any], Found]:
    if not is_packed(content):
        record: ResultRecord[Any] = ResultRecord.deserialize(content)
        return record, "deepflow" if is_record(content) else "prefect"
    said = folder.read(name + META_SUFFIX)
    if said is None:
        raise StoredResultError(f"{name} has no metadata ({name}{META_SUFFIX} is not there)")
    metadata = ResultRecordMetadata.load_bytes(said)
    return ResultRecord(metadata=metadata, result=metadata.serializer.loads(content)), "apart"


def _write(dest: Folder, name: str, record: ResultRecord[Any], layout: Layout) -> int:
    """Write the record; returns the bytes of its file."""
    serializer: Serializer = DeepflowSerializer() if layout == "deepflow" else PickleSerializer()
    key = record.metadata.storage_key
    if key is not None and (Path(key).is_absolute() or "://" in key):
        # Prefect keeps the whole path where the storage was no saved block.
        key = dest.fs.unstrip_protocol(dest.path(name)) if not dest.is_local else dest.path(name)
    new: ResultRecord[Any] = ResultRecord(
        metadata=record.metadata.model_copy(update={"serializer": serializer, "storage_key": key}),
        result=record.result,
    )
    if layout == "prefect":
        document = new.serialize()
    else:
        content = new.serialize_result()
        new.metadata.serializer = DeepflowSerializer(address=address_of(content))
        document = pack_record(new.serialize_metadata(), content)
    ResultRecord.deserialize(document)  # it must be readable before it replaces anything
    dest.write(name, document)
    dest.remove(name + META_SUFFIX)
    return len(document)
