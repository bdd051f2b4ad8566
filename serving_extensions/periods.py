"""Periods of quotas, such as that of `"calls": 1000, "period": "day"`, and the calls in them."""

import calendar
import time
from collections.abc import Callable

SECONDS = {"minute": 60, "hour": 3600, "day": 86400}


def period_of(now: float, period: str) -> tuple[int, int]:
    """When the period that holds `now` began and when it ends, in whole seconds since the epoch.

    A `month` is a calendar month, UTC; so is `usage`.
    """
    if period in SECONDS:
        start = int(now) // SECONDS[period] * SECONDS[period]
        return start, start + SECONDS[period]
    year, month = time.gmtime(now)[:2]
    following = (year + 1, 1) if month == 12 else (year, month + 1)
    return calendar.timegm((year, month, 1, 0, 0, 0)), calendar.timegm((*following, 1, 0, 0, 0))


class Known:
    """The calls of each key in its current period, as this process last knew them."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self.counts: dict[tuple[str, str], tuple[int, int]] = {}  # period's start, calls

    def count_of(self, key: str, period: str) -> tuple[int, int]:
        """The calls of `key` in the current period, and the seconds until the next one begins."""
        start, end = period_of(now := self._clock(), period)
        begun, count = self.counts.get((key, period), (0, 0))
        return count if begun == start else 0, max(1, end - int(now))

    def forget_one(self, key: str, period: str, seconds: float) -> int:
        """Take back the count of a call that came `seconds` ago; returns its period's start."""
        start = period_of(self._clock() - seconds, period)[0]
        begun, count = self.counts.get((key, period), (0, 0))
        if begun == start and count:
            self.counts[key, period] = start, count - 1
        return start
