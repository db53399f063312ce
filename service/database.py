"""The tables of jobs, beside those of DBOS: one SQLite file by default, Postgres where machines share work."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, TimeoutError

_log = logging.getLogger("service.jobs")
_metadata = sa.MetaData()
# Keys are ordered by their bytes in both databases, so a manifest is sorted the same whoever writes it.
_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

jobs = sa.Table(
    "sr3_jobs",
    _metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("finished", sa.Float),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("upload", sa.Boolean, nullable=False, default=False),
    sa.Column("total", sa.Integer, nullable=False, default=0),
    sa.Column("done", sa.Integer, nullable=False, default=0),
    sa.Column("failed", sa.Integer, nullable=False, default=0),
    sa.Column("kept", sa.Integer, nullable=False, default=0),
    sa.Column("next_chunk", sa.Integer, nullable=False, default=1),
    sa.Column("manifested", sa.Integer, nullable=False, default=0),
    sa.Column("note", sa.Text),
    sa.Column("client", sa.Text),  # the name of its maker's key; null where it was made without one
)
pictures = sa.Table(
    "sr3_pictures",
    _metadata,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("key", _KEY, primary_key=True),
    sa.Column("source_bytes", sa.BigInteger, nullable=False),
    sa.Column("output_bytes", sa.BigInteger),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("verify", sa.Boolean, nullable=False, default=False),
    sa.Column("chunk", sa.Integer, nullable=False, default=0),
    sa.Column("attempts", sa.SmallInteger, nullable=False, default=0),
    sa.Column("owner", sa.Text),
    sa.Column("finished", sa.Float),
    sa.Column("record", sa.Text),
    sa.Index("sr3_pictures_chunk", "job", "chunk"),
    sa.Index("sr3_pictures_state", "job", "state", "finished"),
)
workers = sa.Table(
    "sr3_workers",
    _metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("beat", sa.BigInteger, nullable=False),
    sa.Column("adopter", sa.Text),
    sa.Column("device", sa.Text),
)


def database_url(data_dir: Path, url: str | None) -> str:
    """SQLAlchemy's address of the database: `url` with its driver named, or a SQLite file in `data_dir`."""
    if url is None:
        return f"sqlite:///{data_dir / 'jobs.sqlite'}"
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg{separator}{rest}" if scheme in ("postgres", "postgresql") else url


def open_database(url: str, ping: bool = True) -> sa.Engine:
    """An engine on the database, which is made where there is none, with the tables of jobs and of DBOS.

    SQLite gets a write-ahead log: DBOS sets none, and is three times slower so. `ping` asks a Postgres before each use
    of a connection whether it is still there; without, the first use after a restart fails. Raises SQLAlchemy's errors.
    """
    from dbos import DBOS

    logging.getLogger("dbos").setLevel(logging.ERROR)  # it tells of each of its migrations
    address = sa.make_url(url)
    if address.get_backend_name() == "sqlite":
        assert address.database
        Path(address.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(address, pool_size=10, max_overflow=10, pool_use_lifo=True)

        @sa.event.listens_for(engine, "connect")
        def prepare(connection: Any, record: Any) -> None:
            connection.isolation_level = "IMMEDIATE"
            for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")
    else:
        connect = {"connect_timeout": 10, "application_name": "sr3-cascade"}
        engine = sa.create_engine(address, pool_size=10, max_overflow=10, pool_pre_ping=ping, connect_args=connect)
    with engine.begin() as connection:
        wait_alone(connection)  # two that start together must not both create
        _metadata.create_all(connection)
        _add_columns(connection)
    DBOS.migrate(url)
    return engine


def wait_alone(connection: sa.Connection) -> None:
    """Wait until nobody else is between this call and the end of their transaction. To be called first in one."""
    postgres = connection.dialect.name == "postgresql"
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(7372337)" if postgres else "BEGIN IMMEDIATE"))


def begin_writing(connection: sa.Connection) -> None:
    """Let no other write between this call and the end of the transaction where the database locks no rows.

    To be called first in one that reads, `FOR UPDATE` where there is that, and then writes.
    """
    if connection.dialect.name == "sqlite":
        wait_alone(connection)


def _add_columns(connection: sa.Connection) -> None:
    """Add to the tables of an older version the columns that came since, all of which may be null."""
    for table in _metadata.sorted_tables:
        there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                kind = column.type.compile(connection.dialect)
                connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))


def persistently(work: Callable[[], Any], stop: threading.Event | None = None) -> Any:
    """`work()`, again and again with growing pauses while the database is locked, full, restarting or away.

    What the database refuses for good (a constraint, wrong SQL) is raised, and so is the last error once `stop` is set.
    """
    pause = 0.1
    while True:
        try:
            return work()
        except (DBAPIError, TimeoutError) as error:
            if not passing(error) or (stop is not None and stop.is_set()):
                raise
            _log.warning("the database cannot be used, trying again in %.1f s: %s", pause, str(error).split("\n")[0])
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def passing(error: DBAPIError | TimeoutError) -> bool:
    """Whether the same statement may well work later."""
    return isinstance(error, TimeoutError | sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.InternalError)
