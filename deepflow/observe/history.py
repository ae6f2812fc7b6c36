"""The history: what runs of each flow took, kept between runs, so that the next one starts knowing.

Two tables: single observations per flow, task name and worker class (when, seconds, bytes read,
bytes made), and the shape of whole runs (`decide.rank`). Observations are kept rather than what was
concluded from them, so that a better model can learn from an old history. The parameters and
results of tasks are never stored. Both tables are bounded: see the constants.

SQLite by default (write-ahead log, several processes at once), PostgreSQL by URL with psycopg 3
(``pip install 'prefect-deepflow[postgres]'``). A file that is damaged, of another version or not a
history is refused; on PostgreSQL the tables, named ``deepflow_history_…``, may live beside other
ones.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, StaticPool

from deepflow.decide.estimate import Estimates
from deepflow.decide.rank import MAX_RUNS, FlowShape, RunShape, shape_from_list, shape_to_list
from deepflow.errors import HistoryError
from deepflow.observe.fallbacks import Fallback, fell_back

T = TypeVar("T")

__all__ = ["ForgivingHistory", "History", "Observation", "check_target", "open_or_cold"]

VERSION: Final = 1
MAX_PER_CELL: Final = 200
"""Observations kept of each flow, task and worker class, the newest."""
MAX_ROWS: Final = 200_000
"""Observations kept in all; the flows that have not run for longest go first."""
MAX_FLOWS: Final = 256
PRUNE_AFTER: Final = 5_000
"""Rows one process adds before it looks whether there are too many."""

_BUSY_TIMEOUT_S: Final = 10.0
_LOCK: Final = 0x64666C77
"""Of PostgreSQL's advisory locks, the one that stands for the history's schema and pruning."""
_MOST_BYTES: Final = 2**63 - 1

_metadata = sa.MetaData()
_schema = sa.Table(
    "deepflow_history_schema", _metadata, sa.Column("version", sa.Integer, primary_key=True)
)
_seen = sa.Table(
    "deepflow_history_observation",
    _metadata,
    sa.Column(
        "id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True
    ),  # only INTEGER PRIMARY KEY counts up by itself in SQLite
    sa.Column("flow", sa.Text, nullable=False),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("worker_class", sa.Text, nullable=False),
    sa.Column("at_s", sa.Double, nullable=False),
    sa.Column("run_s", sa.Double, nullable=False),
    sa.Column("input_bytes", sa.BigInteger, nullable=False),
    sa.Column("output_bytes", sa.BigInteger, nullable=False),
    sa.Index("deepflow_history_observation_cell", "flow", "task", "worker_class", "id"),
)
_shape = sa.Table(
    "deepflow_history_run",
    _metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("flow", sa.Text, nullable=False),
    sa.Column("at_s", sa.Double, nullable=False),
    sa.Column("shape", sa.Text, nullable=False),
    sa.Index("deepflow_history_run_flow", "flow", "id"),
)
_CELL: Final = (_seen.c.flow, _seen.c.task, _seen.c.worker_class)


@dataclass(frozen=True, slots=True)
class Observation:
    """One task run that ended well."""

    flow: str
    run: str
    """The flow run; what its tasks had in common is told apart from what the next ones have."""
    task: str
    worker_class: str
    at_s: float
    """When it ended, Unix time."""
    run_s: float
    input_bytes: int
    """All it read: outputs of other tasks and external inputs."""
    output_bytes: int

    def __post_init__(self) -> None:
        if not math.isfinite(self.at_s + self.run_s + self.input_bytes + self.output_bytes):
            raise HistoryError(
                f"a run of task {self.task!r} is said to have ended at {self.at_s} after "
                f"{self.run_s} s, with {self.input_bytes} bytes read and {self.output_bytes} made; "
                "record finite numbers"
            )


class History:
    """An open history. Every method raises :class:`HistoryError` where it cannot be used."""

    def __init__(self, engine: sa.Engine, source: str) -> None:
        self._engine = engine
        self._source = source
        self._added = 0
        self._touched: set[str] = set()

    @classmethod
    def open(cls, target: str | Path) -> History:
        """The history in a file, at a URL, or in memory (``":memory:"``); made where it is not yet.

        URLs are ``sqlite:///PATH`` and ``postgresql://…``; the forms that Prefect uses, with
        ``+aiosqlite`` and ``+asyncpg``, mean the same.
        """
        url = _url(target)
        source = url.render_as_string(hide_password=True)
        history = cls(_engine(url, source), source)
        try:
            history._prepare()
        except HistoryError:
            history.close()
            raise
        return history

    def close(self) -> None:
        """Give the connections back; a history in memory is lost with them."""
        self._engine.dispose()

    def record(self, observations: Iterable[Observation]) -> None:
        """Keep these, in one transaction. Now and then also removes what is too old."""
        rows = [dict(zip(_seen.c.keys()[1:], astuple(seen), strict=True)) for seen in observations]
        for row in rows:
            row["input_bytes"] = _whole(row["input_bytes"])
            row["output_bytes"] = _whole(row["output_bytes"])
        if not rows:
            return
        with self._writing() as connection:
            connection.execute(sa.insert(_seen), rows)
        self._prune_when_due({row["flow"] for row in rows}, len(rows))

    def record_run(self, flow: str, at_s: float, shape: RunShape) -> None:
        """Keep the shape of a whole run that ended at `at_s`."""
        if not shape.names:
            return
        row = {"flow": flow, "at_s": at_s, "shape": json.dumps(shape_to_list(shape))}
        with self._writing() as connection:
            connection.execute(sa.insert(_shape), row)
        self._prune_when_due([flow], 1)

    def observations(self, flow: str | None = None) -> list[Observation]:
        """What is kept, of one flow or all, the oldest first."""
        return [Observation(*row) for row in self._rows(flow)]

    def _rows(self, flow: str | None) -> Sequence[sa.Row[Any]]:
        query = sa.select(*_seen.c[1:]).order_by(_seen.c.at_s, _seen.c.id)
        if flow is not None:
            query = query.where(_seen.c.flow == flow)
        with self._reading() as connection:
            return connection.execute(query).all()

    def estimates(self, flow: str | None = None) -> Estimates:
        """The run-time model of one flow, or of all, learned from what is kept.

        10 to 20 µs for each observation. One flow alone lacks what other flows tell about the
        classes' speeds.
        """
        estimates = Estimates()
        begun: set[tuple[str, str]] = set()
        for seen in self._rows(flow):
            if (seen.flow, seen.run) not in begun:
                begun.add((seen.flow, seen.run))
                estimates.begin_run(seen.flow)
            estimates.observe(
                seen.flow,
                seen.task,
                seen.worker_class,
                seen.run_s,
                seen.input_bytes,
                seen.output_bytes,
            )
        return estimates

    def shapes(self) -> FlowShape:
        """What runs of each flow look like, learned from what is kept."""
        shapes = FlowShape()
        query = sa.select(_shape.c.flow, _shape.c.shape).order_by(_shape.c.at_s, _shape.c.id)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        for flow, saved in rows:
            try:
                shapes.learn(flow, shape_from_list(json.loads(saved)))
            except (ValueError, HistoryError) as error:
                raise self._refused(f"the shape of a run of {flow!r} is damaged: {error}") from None
        return shapes

    def prune(self) -> None:
        """Remove what is beyond the bounds: old observations and runs, then whole old flows."""
        self._prune(only_touched=False)

    def _prune(self, *, only_touched: bool) -> None:
        with self._writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            for flow in self._touched if only_touched else [None]:
                _keep_newest(connection, _seen, _CELL, MAX_PER_CELL, flow)
                _keep_newest(connection, _shape, (_shape.c.flow,), MAX_RUNS, flow)
            for flow in _too_old(connection):
                connection.execute(sa.delete(_seen).where(_seen.c.flow == flow))
                connection.execute(sa.delete(_shape).where(_shape.c.flow == flow))
            n_rows = connection.execute(sa.select(sa.func.count()).select_from(_seen)).scalar_one()
            if n_rows > MAX_ROWS:
                _keep_newest(connection, _seen, (), MAX_ROWS, None)
        self._added = 0
        self._touched.clear()

    def _prune_when_due(self, flows: Iterable[str], n_added: int) -> None:
        self._touched.update(flows)
        self._added += n_added
        if self._added >= PRUNE_AFTER:
            self._prune(only_touched=True)

    def _prepare(self) -> None:
        """Look whether this is a history of this version; make the tables where there is none."""
        with self._writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            elif (damage := _damage(connection)) is not None:
                raise self._refused(f"the file is damaged: {damage}")
            tables = set(sa.inspect(connection).get_table_names())
            if _schema.name not in tables:
                foreign = sorted(tables)[:3]
                if foreign and connection.dialect.name == "sqlite":
                    raise self._refused(f"this is not a history but has tables {foreign}")
                _metadata.create_all(connection)
                connection.execute(sa.insert(_schema), {"version": VERSION})
                return
            versions = sorted(connection.execute(sa.select(_schema.c.version)).scalars())
            if versions != [VERSION]:
                raise self._refused(f"it has version {versions}, not {VERSION}")
            missing = sorted({table.name for table in _metadata.sorted_tables} - tables)
            if missing:
                raise self._refused(f"tables {missing} are missing")

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._wrapped(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._wrapped(), self._engine.connect() as connection:
            yield connection.execution_options(deepflow_reading=True)

    @contextmanager
    def _wrapped(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise self._refused(f"{type(error.orig).__name__}: {error.orig}") from error
        except sa.exc.SQLAlchemyError as error:
            raise self._refused(f"{type(error).__name__}: {error}") from error

    def _refused(self, cause: str) -> HistoryError:
        remedy = "move it away (a new one is begun), or name another"
        if not self._source.startswith("sqlite"):
            remedy = "check the server and the rights on it, or name another database"
        elif "disk is full" in cause:
            remedy = "make room there, or name another with DEEPFLOW_HISTORY"
        return HistoryError(
            f"the history {self._source} cannot be used: {cause.strip()}; {remedy}",
            source=self._source,
        )


def check_target(target: str | Path) -> None:
    """Raise :class:`HistoryError` where no history could be kept at `target`; opens nothing."""
    url = _url(target)
    if url.get_backend_name() == "postgresql" and importlib.util.find_spec("psycopg") is None:
        raise HistoryError(
            f"the history {url.render_as_string(hide_password=True)} needs the package 'psycopg', "
            "which is not installed; pip install 'prefect-deepflow[postgres]'",
            source=url.render_as_string(hide_password=True),
        )
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return
    path = Path(str(url.database)).absolute()
    standing = next(one for one in (path, *path.parents) if one.exists())
    if standing == path and not path.is_file():
        cause = f"{path} is no file"
    elif standing != path and not standing.is_dir():
        cause = f"{standing} is no folder"
    elif not os.access(standing, os.W_OK):
        cause = f"nothing may be written to {standing}"
    else:
        return
    raise HistoryError(
        f"the history {url.render_as_string(hide_password=True)} cannot be used: {cause}; name a "
        "file in a folder that can be written to",
        source=url.render_as_string(hide_password=True),
    )


def _url(target: str | Path) -> sa.URL:
    """The URL for what a user names, with the driver that is used here."""
    text = str(target)
    if isinstance(target, Path) or "://" not in text:
        path = text if text == ":memory:" else str(Path(text).expanduser().absolute())
        return sa.URL.create("sqlite", database=path)
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise HistoryError(
            "the history's URL cannot be read (it is not shown: it may hold a password); "
            "write sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None
    dialect = url.drivername.partition("+")[0]
    drivers = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
    drivers["postgres"] = drivers["postgresql"]
    if dialect not in drivers:
        raise HistoryError(
            f"a history cannot be kept in {dialect!r}; use sqlite:///PATH or postgresql://…",
            source=url.render_as_string(hide_password=True),
        )
    return url.set(drivername=drivers[dialect])


def _engine(url: sa.URL, source: str) -> sa.Engine:
    if url.get_backend_name() == "postgresql":
        try:
            return sa.create_engine(url, pool_pre_ping=True, pool_size=1)
        except ModuleNotFoundError as error:
            raise HistoryError(
                f"the history {source} needs the package {error.name!r}; "
                "pip install 'prefect-deepflow[postgres]'",
                source=source,
            ) from error
    in_memory = url.database in (None, "", ":memory:")
    if not in_memory:
        _make_folder(Path(str(url.database)), source)
    engine = sa.create_engine(
        url,
        poolclass=StaticPool if in_memory else NullPool,
        connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False},
    )
    sa.event.listen(engine, "connect", _on_sqlite_connect)
    sa.event.listen(engine, "begin", _on_sqlite_begin)
    return engine


def _make_folder(path: Path, source: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HistoryError(
            f"the folder of the history {source} cannot be made: {error}; "
            "name a path that can be written to",
            source=source,
        ) from error


def _on_sqlite_connect(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    # Python's sqlite3 begins transactions late and upgrades them, which fails at once when another
    # process writes; so transactions are begun here, in `_on_sqlite_begin`.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _on_sqlite_begin(connection: sa.Connection) -> None:
    reads = connection.get_execution_options().get("deepflow_reading", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _damage(connection: sa.Connection) -> str | None:
    """What SQLite's own check finds first; it reads the file once, about 1 ms a megabyte."""
    found = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())
    return None if found == "ok" else found


def _keep_newest(
    connection: sa.Connection,
    table: sa.Table,
    of: Sequence[sa.Column[Any]],
    n: int,
    flow: str | None,
) -> None:
    """Delete all but the newest `n` rows of each group, of one flow or all."""
    place = sa.func.row_number().over(partition_by=of, order_by=table.c.id.desc())
    ranked = sa.select(table.c.id, place.label("place"))
    if flow is not None:
        ranked = ranked.where(table.c.flow == flow)
    rows = ranked.subquery()
    too_many = sa.select(rows.c.id).where(rows.c.place > n)
    connection.execute(sa.delete(table).where(table.c.id.in_(too_many)))


def _too_old(connection: sa.Connection) -> list[str]:
    """Flows beyond the bounds on flows and rows, but for the newest one."""
    n_rows = dict(
        connection.execute(sa.select(_seen.c.flow, sa.func.count()).group_by(_seen.c.flow))
        .tuples()
        .all()
    )
    both = sa.union_all(
        sa.select(_seen.c.flow, _seen.c.at_s), sa.select(_shape.c.flow, _shape.c.at_s)
    ).subquery()
    newest = sa.func.max(both.c.at_s)
    flows = connection.execute(
        sa.select(both.c.flow).group_by(both.c.flow).order_by(newest.desc(), both.c.flow)
    ).scalars()
    old: list[str] = []
    total = 0
    for i, flow in enumerate(flows):
        total += n_rows.get(flow, 0)
        if i and (i >= MAX_FLOWS or total > MAX_ROWS):
            old.append(flow)
    return old


def _whole(n_bytes: float) -> int:
    return min(max(int(n_bytes), 0), _MOST_BYTES)


class ForgivingHistory:
    """A history that never fails: where it cannot be used, the run starts cold and goes on.

    The first failure is logged and counted (``deepflow_fallbacks_total{kind="history"}``); after
    it the history is left alone.
    """

    def __init__(self, target: str | Path, log: logging.Logger) -> None:
        self._log = log
        self._history: History | None = None
        try:
            self._history = History.open(target)
        except HistoryError as error:
            self._give_up(error)

    @property
    def is_cold(self) -> bool:
        """Whether there is no history to learn from or to add to."""
        return self._history is None

    def estimates(self, flow: str | None = None) -> Estimates:
        """As :meth:`History.estimates`; empty where there is none."""
        return self._try(lambda history: history.estimates(flow)) or Estimates()

    def shapes(self) -> FlowShape:
        """As :meth:`History.shapes`; empty where there is none."""
        return self._try(History.shapes) or FlowShape()

    def record(self, observations: Iterable[Observation]) -> None:
        """As :meth:`History.record`; nothing where there is none."""
        self._try(lambda history: history.record(observations))

    def record_run(self, flow: str, at_s: float, shape: RunShape) -> None:
        """As :meth:`History.record_run`; nothing where there is none."""
        self._try(lambda history: history.record_run(flow, at_s, shape))

    def close(self) -> None:
        """Give the connections back."""
        if self._history:
            self._history.close()

    def _try(self, use: Callable[[History], T]) -> T | None:
        if self._history is None:
            return None
        try:
            return use(self._history)
        except HistoryError as error:
            self._give_up(error)
            return None

    def _give_up(self, error: HistoryError) -> None:
        self._log.warning("going on without a history, run times are learned anew: %s", error)
        fell_back(Fallback.HISTORY)
        if self._history:
            self._history.close()
            self._history = None


def open_or_cold(target: str | Path, log: logging.Logger) -> ForgivingHistory:
    """The history at `target`, or, said once in `log`, one that is empty and forgets."""
    return ForgivingHistory(target, log)
