"""Periods of quotas, such as that of `"calls": 1000, "period": "day"`."""

import calendar
import time

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
