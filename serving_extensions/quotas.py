"""Calls of each key counted in SQLite, exactly: over threads, processes, restarts and kill -9."""

import contextlib
import functools
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .core import Config, ConfigError, Extension, ModelServer
from .periods import period_of
from .redis_quotas import RedisQuotas, shown


class Quotas:
    """A table of (key name, period, its start) -> calls. One connection, used under a lock, opened
    anew after a fork.

    The write-ahead log is not flushed to the disk at each call: what was counted survives the end
    of the process however it comes, and may lose the last calls when the machine loses power.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time):
        self._path, self._clock = path, clock
        self._lock = threading.Lock()
        self._process, self._database = 0, None  # type: int, sqlite3.Connection | None
        with self._lock:
            self._connect()

    def _connect(self) -> sqlite3.Connection:
        if self._database is None or self._process != os.getpid():
            self._database = sqlite3.connect(
                self._path, timeout=10, isolation_level=None, check_same_thread=False
            )
            self._process = os.getpid()
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS calls (key TEXT, period TEXT, start INTEGER, count "
                "INTEGER, PRIMARY KEY (key, period, start)) WITHOUT ROWID"
            )
        return self._database

    def take(self, key: str, calls: int, period: str) -> int | None:
        """Count one call of `key`; None when it is within `calls` a `period`, else the seconds
        until the next one begins.

        Raises OSError when the count cannot be written.
        """
        now = self._clock()
        start, end = period_of(now, period)
        try:
            with self._lock:
                counted = (
                    self._connect()
                    .execute(
                        "INSERT INTO calls VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET count "
                        "= count + 1 WHERE count < ? RETURNING count",
                        (key, period, start, calls),
                    )
                    .fetchall()
                )
        except sqlite3.Error as error:
            raise OSError(str(error)) from error
        return None if counted else max(1, end - int(now))

    def used(self, key: str, period: str) -> int:
        """The calls counted for `key` in the period that is now."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            row = (
                self._connect()
                .execute(
                    "SELECT count FROM calls WHERE key = ? AND period = ? AND start = ?",
                    (key, period, period_of(self._clock(), period)[0]),
                )
                .fetchone()
            )
            return row[0] if row else 0
        return 0


@functools.cache
def open_quotas(path: str) -> Any:
    """The one store over a file, or a Redis (`Quotas` or `RedisQuotas`), in this process.

    Raises OSError when it cannot be opened.
    """
    if "://" in path:
        return RedisQuotas(path)
    try:
        return Quotas(Path(path))
    except sqlite3.Error as error:
        raise OSError(str(error)) from error


def prepare(server: ModelServer, config: Config) -> Callable[[str, int, str], int | None] | None:
    """What counts the calls of keys with a quota; None where no key has one. Raises ConfigError."""
    if not any(key.quota for key in config.auth.keys):
        return None
    store = config.auth.quota_store or ""
    try:
        return open_quotas(store).take
    except OSError as error:
        text = f"cannot be opened: {error}: {shown(store)}"
        raise ConfigError("$.auth.quota_store", text) from None


EXTENSION = Extension("quotas", sections={"auth.keys[].quota": None}, prepare=prepare)
