"""Count each key's calls exactly, in SQLite: across threads, processes, restarts and kill -9.

`RateLimit-*` headers and /usage tell what is left of a quota. Calls that the server failed are
given back.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from .core import (
    Call,
    Config,
    ConfigError,
    Extension,
    Key,
    ModelServer,
    Outcome,
    Quota,
    Reply,
    reply,
    route,
)
from .periods import Known, period_of
from .redis_quotas import RedisQuotas, shown

logger = logging.getLogger("serving")


class Quotas(Known):
    """A table (key name, period, period's start) -> calls. One connection, used under a lock and
    reopened after a fork, after `close`, and when the file has been removed or replaced.

    The write-ahead log is not flushed to the disk at each call: counts survive any end of the
    process, but a power loss may take the last calls.
    """

    def __init__(self, path: Path | str, clock: Callable[[], float] = time.time):
        super().__init__(clock)
        self._path = Path(path)
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._opened: tuple[int, ...] = ()  # what `_identify` told when it was opened
        self._told: set[str] = set()  # reasons that are already logged
        # The first count makes a missing file, not the reading of a config: `--check` run as root
        # would leave a file that the server may not write.
        if self._path.exists() or not os.access(self._path.parent, os.W_OK | os.X_OK):
            with self._lock:  # fails if nothing can be counted
                self._connect().execute("UPDATE calls SET count = count WHERE count < 0")

    def _identify(self) -> tuple[int, ...]:
        """This process and the file that is now at the path, if there is one."""
        try:
            found = os.stat(self._path)
        except OSError:
            return (os.getpid(),)
        return os.getpid(), found.st_dev, found.st_ino

    def _connect(self) -> sqlite3.Connection:
        if self._database is None or self._opened != self._identify():
            self._disconnect()
            database = sqlite3.connect(
                self._path, timeout=10, isolation_level=None, check_same_thread=False
            )
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute(
                "CREATE TABLE IF NOT EXISTS calls (key TEXT, period TEXT, start INTEGER, count "
                "INTEGER, PRIMARY KEY (key, period, start)) WITHOUT ROWID"
            )
            self._database, self._opened = database, self._identify()
        return self._database

    def _disconnect(self) -> None:
        # For a file that was replaced, SQLite leaves the -wal alone, which is the new file's.
        if self._database is not None:
            self._database.close()
            self._database = None

    def close(self) -> None:
        """Close the connection; whoever counts after that opens a new one."""
        with self._lock:
            self._disconnect()

    def _ask(self, statement: str, values: tuple) -> list[tuple]:
        """The rows of a statement; raises OSError, and logs each reason once."""
        try:
            with self._lock:
                return self._connect().execute(statement, values).fetchall()
        except sqlite3.Error as error:
            if (reason := str(error)) not in self._told:
                self._told.add(reason)
                logger.error("Calls cannot be counted in %s: %s", self._path, reason)
            raise OSError(reason) from error

    def take(self, key: str, calls: int, period: str) -> int | None:
        """Count one call of `key`; None if it is within `calls` per `period`, else the seconds
        until the next period begins.

        Raises OSError when the count cannot be written.
        """
        now = self._clock()
        start, end = period_of(now, period)
        counted = self._ask(
            "INSERT INTO calls VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET count "
            "= count + 1 WHERE count < ? RETURNING count",
            (key, period, start, calls),
        )
        self.counts[key, period] = start, counted[0][0] if counted else calls
        if counted and counted[0][0] == 1:  # a call of the period before may still be given back
            before = period_of(start - 1, period)[0]
            self._ask(
                "DELETE FROM calls WHERE key = ? AND period = ? AND start < ?",
                (key, period, before),
            )
        return None if counted else max(1, end - int(now))

    def give_back(self, key: str, period: str, seconds: float) -> None:
        """Take back the count of a call that came `seconds` ago. Raises OSError."""
        self._ask(
            "UPDATE calls SET count = count - 1 WHERE key = ? AND period = ? AND start = ? "
            "AND count > 0",
            (key, period, self.forget_one(key, period, seconds)),
        )

    def add(self, key: str, calls: int) -> None:
        """Add `calls` to the usage of `key` in this month. Raises OSError."""
        start = period_of(self._clock(), "month")[0]
        self._ask(
            "INSERT INTO calls VALUES (?, 'usage', ?, ?) ON CONFLICT DO UPDATE SET count = count "
            "+ excluded.count",
            (key, start, calls),
        )

    def used(self, key: str, period: str) -> int:
        """The calls counted for `key` in the current period (`usage`: the month), or, while they
        cannot be read, as this process last knew them.
        """
        start = period_of(self._clock(), period)[0]
        statement = "SELECT count FROM calls WHERE key = ? AND period = ? AND start = ?"
        with self._lock, contextlib.suppress(sqlite3.Error):
            row = self._connect().execute(statement, (key, period, start)).fetchone()
            self.counts[key, period] = start, row[0] if row else 0
        return self.count_of(key, period)[0]


@functools.cache
def open_quotas(path: str) -> Any:
    """This process's only store for a file (`Quotas`) or a Redis URL (`RedisQuotas`).

    Raises OSError when it cannot be opened.
    """
    if "://" in path:
        return RedisQuotas(path)
    try:
        return Quotas(path)
    except sqlite3.Error as error:
        raise OSError(str(error)) from error


def prepare(server: ModelServer, config: Config) -> Callable[[str, int, str], int | None] | None:
    """The counter of calls of keys with a quota; None if no key has one. Raises ConfigError."""
    if not any(key.quota for key in config.auth.keys):
        return None
    store = config.auth.quota_store or ""
    try:
        return open_quotas(store).take
    except OSError as error:
        place = shown(store) if "://" in store else Path(store).name
        text = f"cannot be opened: {error}: {place}"
        raise ConfigError("$.auth.quota_store", text) from None


# --- usage ----------------------------------------------------------------------------------------

FLUSH_SECONDS = 10.0  # a kill -9 loses this much usage, but no quota


class Usage:
    """This month's calls of all keys, with a quota or without, if the config has `admin`.

    Counted in memory; added to the store every ten seconds and whenever they are read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: Counter[str] = Counter()
        self._flushed = time.monotonic()

    def count(self, path: str, key: str) -> None:
        with self._lock:
            self._pending[key] += 1
        self.settle(path)

    def settle(self, path: str) -> None:
        """Add what is pending to a store if it is time for that."""
        if self._pending and time.monotonic() >= self._flushed + FLUSH_SECONDS:
            self.flush(path)

    def flush(self, path: str) -> None:
        """Add pending calls to a store; those that it cannot take stay pending."""
        with self._lock, contextlib.suppress(OSError):
            self._flushed = time.monotonic()
            for key, calls in list(self._pending.items()):
                open_quotas(path).add(key, calls)
                del self._pending[key]

    def read(self, path: str, key: str) -> int:
        """The calls of a key in this month; only those since the start if there is no store."""
        self.flush(path)
        with contextlib.suppress(OSError):
            return open_quotas(path).used(key, "usage") + self._pending[key]
        return self._pending[key]


def headers(server: ModelServer, call: Call, replied: Reply) -> list[tuple[str, str]]:
    """Headers with what is left of the key's quota after a counted call.

    A call that the server failed or turned away is given back first and does not count as usage.
    """
    caller = call.caller
    if not caller.counted or caller.key is None:
        return []
    config, quota = server.config, caller.key.quota
    failed = replied.status >= 500 or replied.status == HTTPStatus.TOO_MANY_REQUESTS
    call.caller = dataclasses.replace(caller, counted=False)  # settled only once
    if config.admin and not failed:
        server.state["quotas"].count(config.auth.quota_store or "", caller.name)
    if quota is None:
        return []
    store = open_quotas(config.auth.quota_store or "")
    if failed:
        spent = time.perf_counter() - call.trace.start
        try:
            store.give_back(caller.name, quota.period, spent)
        except OSError as error:
            logger.warning("A call of key '%s' is not given back: %s", caller.name, error)
    count, seconds = store.count_of(caller.name, quota.period)
    return [
        ("RateLimit-Limit", str(quota.calls)),
        ("RateLimit-Remaining", str(max(0, quota.calls - count))),
        ("RateLimit-Reset", str(seconds)),
    ]


def refresh(server: ModelServer, outcome: Outcome, polling: bool) -> None:
    """Calls do not wait for the next one to be written."""
    if server.config.admin:
        server.state["quotas"].settle(server.config.auth.quota_store or "")


def view_usage(server: ModelServer, call: Call) -> Reply:
    """What the caller's key is for and how much it has been used; no quota counts this."""
    assert call.caller.key is not None  # the guard `own` demands one
    return reply(describe_usage(server, call.caller.key))


def describe_usage(server: ModelServer, key: Key) -> dict[str, Any]:
    """A key as its owner may see it; `month_calls` is null if it is not counted."""
    path, counted = server.config.auth.quota_store or "", server.config.admin is not None
    return {
        "name": key.name,
        "expires": key.expires,
        "disabled": key.disabled,
        "admin": key.admin,
        "deployments": None if key.deployments is None else list(key.deployments),
        "quota": key.quota and describe_quota(open_quotas(path), key.name, key.quota),
        "month_calls": server.state["quotas"].read(path, key.name) if counted else None,
    }


def describe_quota(store: Any, name: str, quota: Quota) -> dict[str, Any]:
    used = store.used(name, quota.period)
    return {
        "calls": quota.calls,
        "period": quota.period,
        "used": used,
        "remaining": max(0, quota.calls - used),
        "reset_seconds": store.count_of(name, quota.period)[1],
    }


def end(server: ModelServer) -> None:
    """Write what is pending and close the store; another server that shares it opens it anew."""
    config = server.config
    path = config.auth.quota_store or ""
    if config.admin:
        server.state["quotas"].flush(path)
    if config.admin or any(key.quota for key in config.auth.keys):
        with contextlib.suppress(OSError):  # a store that never opened
            open_quotas(path).close()


EXTENSION = Extension(
    "quotas",
    sections={"auth.keys[].quota": None},
    open=lambda server: Usage(),
    prepare=prepare,
    headers=headers,
    refresh=refresh,
    end=end,
    routes=(
        route(
            "GET",
            "/usage",
            view_usage,
            "own",
            "What the key is for, and how much of its quota is used",
            line="state",
        ),
    ),
)
