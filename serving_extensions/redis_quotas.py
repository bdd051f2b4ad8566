"""Count each key's calls exactly, in Redis: across all servers that share it."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from .periods import Known, period_of

TIMEOUT_SECONDS = 1.0  # to connect and for an answer; `?socket_timeout=` in the URL overrides it
KEPT_SECONDS = 3600  # a count outlives its period by this: servers' clocks may differ
# Checking, counting and setting the expiry are one step: no count exceeds the limit, and each
# expires.
TAKE = """
if tonumber(redis.call('GET', KEYS[1]) or '0') >= tonumber(ARGV[1]) then return 0 end
local count = redis.call('INCR', KEYS[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return count
"""
# An expired count must not start again below zero.
GIVE_BACK = """
if tonumber(redis.call('GET', KEYS[1]) or '0') > 0 then redis.call('DECR', KEYS[1]) end
"""
ADD = """
redis.call('INCRBY', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""

logger = logging.getLogger("serving")


class RedisQuotas(Known):
    """A counter for each (key name, period, period's start), with the methods of `quotas.Quotas`.
    One client per process.

    Opening does not connect: a server starts even while Redis is away. No command is sent twice,
    so a call whose Redis answer is lost may be counted though it is refused, as when a process is
    killed.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.time):
        try:
            import redis
        except ModuleNotFoundError:
            raise OSError("the package redis is not installed: pip install 'redis>=5'") from None
        super().__init__(clock)
        self._url, self._redis = url, redis
        self._lock = threading.Lock()
        self._process, self._client = 0, None  # type: int, Any
        self._failed_at: float | None = None
        try:
            pool = self._connect().connection_pool
            # fails for an unknown option, without connecting
            pool.connection_class(**pool.connection_kwargs)
        except (ValueError, TypeError):  # the text may quote the password
            raise OSError("not a URL that redis-py takes") from None

    def _connect(self) -> Any:
        with self._lock:
            if self._client is None or self._process != os.getpid():
                from redis.backoff import NoBackoff
                from redis.retry import Retry

                self._client = self._redis.Redis.from_url(
                    self._url,
                    socket_timeout=TIMEOUT_SECONDS,
                    socket_connect_timeout=TIMEOUT_SECONDS,
                    retry=Retry(NoBackoff(), 0),
                )
                self._process = os.getpid()
            return self._client

    def _ask(self, command: Callable[[Any], Any]) -> Any:
        """Redis's answer. Raises OSError, and logs why for the first in a row."""
        try:
            answer = command(self._connect())
        except (self._redis.RedisError, OSError) as error:
            if self._failed_at is None:
                logger.error("Quotas cannot be counted in %s: %s", shown(self._url), error)
            self._failed_at = time.monotonic()
            raise OSError(
                f"Redis: {type(error).__name__}"
            ) from None  # clients need not know where it is
        if self._failed_at is not None:
            logger.info("Quotas are counted in %s again", shown(self._url))
            self._failed_at = None
        return answer

    def close(self) -> None:
        """Close the connections that nobody uses; whoever counts after that opens new ones."""
        self._connect().connection_pool.disconnect(inuse_connections=False)

    def take(self, key: str, calls: int, period: str) -> int | None:
        """Count one call of `key`; None if it is within `calls` per `period`, else the seconds
        until the next period begins.

        Raises OSError when the call cannot be counted.
        """
        now = self._clock()
        start, end = period_of(now, period)
        left = max(1, end - int(now))
        counted = self._ask(
            lambda client: client.eval(
                TAKE, 1, counter(key, period, start), calls, left + KEPT_SECONDS
            )
        )
        self.counts[key, period] = start, int(counted) or calls
        return None if counted else left

    def give_back(self, key: str, period: str, seconds: float) -> None:
        """Take back the count of a call that came `seconds` ago. Raises OSError."""
        start = self.forget_one(key, period, seconds)
        self._ask(lambda client: client.eval(GIVE_BACK, 1, counter(key, period, start)))

    def add(self, key: str, calls: int) -> None:
        """Add `calls` to the usage of `key` in this month. Raises OSError."""
        now = self._clock()
        start, end = period_of(now, "month")
        kept = end - int(now) + KEPT_SECONDS
        self._ask(lambda client: client.eval(ADD, 1, counter(key, "usage", start), calls, kept))

    def used(self, key: str, period: str) -> int:
        """The calls counted for `key` in the current period, or, while Redis does not answer, as
        this process last knew them.
        """
        # /metrics asks for each key, and must answer while Redis is down
        if self._failed_at is None or time.monotonic() >= self._failed_at + 5:
            start = period_of(self._clock(), period)[0]
            with contextlib.suppress(OSError):
                count = self._ask(lambda client: client.get(counter(key, period, start)))
                self.counts[key, period] = start, int(count or 0)
        return self.count_of(key, period)[0]


def counter(key: str, period: str, start: int) -> str:
    """The name in Redis of one count."""
    return f"serving:quota:{key}:{period}:{start}"


def shown(url: str) -> str:
    """A quota store for logs and errors: its URL without user, password and options."""
    parts = urlsplit(url)
    try:
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
    except ValueError:  # not a port, but a password: the host was forgotten
        return f"{parts.scheme}://..."
