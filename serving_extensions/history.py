"""Figures of the last five minutes, hour and day, for graphs: NumPy ring buffers of fixed size.

    Series       counts and latencies of a deployment's, model's, pipeline's or handler's requests,
                 or of all
    Resources    memory, CPU, queue and so on, sampled every few seconds
    spell_history, load_history   a file that keeps both over a restart

Nothing here is thread-safe: `Metrics` holds a lock around it.
"""

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .core import PHASES

# upper bounds of latency in seconds: eight per factor of ten, from 0.1 ms to 100 s
BOUNDS = np.round(10 ** (np.arange(49) / 8 - 4), 9)
ROW_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # upper bounds of batch sizes
CLASSES = ("2xx", "3xx", "4xx", "5xx")  # of statuses


class Window(NamedTuple):
    step: int  # seconds
    length: int  # steps


WINDOWS = {"5m": Window(5, 60), "1h": Window(60, 60), "24h": Window(600, 144)}

# Columns of `counts`: statuses, latencies, batch sizes, requests that waited in the queue, requests
# that ran a model. Columns of `sums`: seconds, seconds of each part, rows.
LATENCY = len(CLASSES)
BATCHES = LATENCY + len(BOUNDS) + 1
QUEUED = BATCHES + len(ROW_BOUNDS) + 1
RAN = QUEUED + 1
COUNTS = RAN + 1
SUMS = 1 + len(PHASES) + 1

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}  # of latency

MOST_SERIES = 200  # requests of further names are only counted in the series of all


class Ring:
    """The latest steps of a window, one row each; `stamps` has the number of the row's step, which
    is its time divided by `window.step`.
    """

    def __init__(self, window: Window, **columns: tuple[int, Any]):
        self.window = window
        self.stamps = np.full(window.length, -1, np.int64)
        self.arrays = {
            name: np.zeros((window.length, count), dtype)
            for name, (count, dtype) in columns.items()
        }

    def place(self, now: float) -> int:
        """The row of the step that contains `now`; it is cleared if it holds another step."""
        stamp = int(now) // self.window.step
        row = stamp % self.window.length
        if self.stamps[row] != stamp:
            self.stamps[row] = stamp
            for array in self.arrays.values():
                array[row] = 0
        return row

    def read(self, now: float) -> dict[str, np.ndarray]:
        """The rows from the oldest step to that of `now`, zeros for a step without data.

        Arrays [length, columns] by name, and `time`, int64 [length]: when each step began.
        """
        last = int(now) // self.window.step
        stamps = np.arange(last - self.window.length + 1, last + 1)
        rows = stamps % self.window.length
        there = self.stamps[rows] == stamps
        found = {name: array[rows] for name, array in self.arrays.items()}
        for array in found.values():
            array[~there] = 0
        return {"time": stamps * self.window.step, **found}


class Series:
    """The requests of one name: counts of statuses, latencies, batch sizes, and times of parts;
    and how many were refused before a thread took them, which the other numbers leave out.

    87,648 bytes: 264 steps of 67 counts (uint32), 7 sums (float64) and a stamp. 40 names and all
    together have 3,593,568; the most that there can be, `MOST_SERIES` and all, 17.6 MB.
    """

    def __init__(self) -> None:
        columns = {"counts": (COUNTS, np.uint32), "sums": (SUMS, np.float64)}
        self.rings = {
            name: Ring(window, **columns, refused=(1, np.uint32))
            for name, window in WINDOWS.items()
        }

    def add(self, now: float, counts: np.ndarray, sums: np.ndarray) -> None:
        """Add the counts and sums that `tally` returns for requests that ended at `now`."""
        for ring in self.rings.values():
            row = ring.place(now)
            ring.arrays["counts"][row] += counts
            ring.arrays["sums"][row] += sums

    def refuse(self, now: float, count: int) -> None:
        """Add requests that were refused until `now`."""
        for ring in self.rings.values():
            ring.arrays["refused"][ring.place(now)] += count

    def is_recent(self, now: float) -> bool:
        """Whether any window still has data of this series."""
        return any(
            ring.stamps.max() > int(now) // ring.window.step - ring.window.length
            for ring in self.rings.values()
        )


def tally(
    statuses: np.ndarray, seconds: np.ndarray, spent: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count N requests: a row of counts, uint32 [COUNTS], and one of sums, float64 [SUMS].

    `statuses`, `seconds` and `rows` are [N]; `rows` is 0 for a request that ran no model. `spent`
    [N, len(PHASES)] has the seconds of each part, NaN if the request had no such part.
    """
    counts, sums = np.zeros(COUNTS, np.uint32), np.zeros(SUMS)
    classes = np.clip(statuses // 100, 2, 5) - 2
    counts[:LATENCY] = np.bincount(classes, minlength=LATENCY)
    counts[LATENCY:BATCHES] = count_by(BOUNDS, seconds)
    counts[BATCHES:QUEUED] = count_by(ROW_BOUNDS, rows[rows > 0])
    known = ~np.isnan(spent)
    counts[QUEUED], counts[RAN] = known[:, 0].sum(), known[:, PHASES.index("inference")].sum()
    sums[0], sums[-1] = seconds.sum(), rows.sum()
    sums[1:-1] = np.where(known, spent, 0).sum(axis=0)
    return counts, sums


def count_by(bounds: Any, values: np.ndarray) -> np.ndarray:
    """A histogram, int64 [len(bounds) + 1]: a bin's upper bound is included, its lower excluded;
    the last bin has the values above all bounds.
    """
    return np.bincount(np.searchsorted(bounds, values), minlength=len(bounds) + 1)


def quantiles(counts: np.ndarray) -> np.ndarray:
    """The QUANTILES in seconds, estimated from histograms: float64 [N, len(QUANTILES)], NaN for an
    empty histogram.

    `counts` [N, len(BOUNDS) + 1] by upper bound. Within a bin, whose upper bound is a third above
    its lower one, requests are assumed to be spread evenly on a logarithmic scale; latencies beyond
    the last bound are reported as that bound.
    """
    upper = np.append(BOUNDS, BOUNDS[-1])
    lower = np.concatenate([[BOUNDS[0] / 10], BOUNDS])
    sums = np.cumsum(counts, axis=1, dtype=np.float64)  # [N, B]
    found = np.full((len(counts), len(QUANTILES)), np.nan)
    some = np.flatnonzero(sums[:, -1])
    for place, share in enumerate(QUANTILES.values()):
        rank = share * sums[some, -1]
        at = np.argmax(sums[some] >= rank[:, np.newaxis], axis=1)
        inside = counts[some, at].astype(np.float64)
        before = sums[some, at] - inside
        part = np.clip((rank - before) / np.maximum(inside, 1), 0, 1)
        found[some, place] = lower[at] * (upper[at] / lower[at]) ** part
    return found


def describe_series(series: Mapping[str, np.ndarray], minutes: np.ndarray) -> dict[str, Any]:
    """A series as /stats shows it: one list per figure, None for steps without data.

    `series` is what `Ring.read` returns, `minutes` [length] the duration of each step.
    """
    counts, sums = series["counts"], series["sums"]
    number = counts[:, : len(CLASSES)].sum(axis=1)
    each, ran = (np.where(n, n, np.nan) for n in (number, counts[:, RAN]))
    waited = np.where(counts[:, QUEUED], counts[:, QUEUED], np.nan)
    queued = sums[:, 1 + PHASES.index("queue")]
    latency = 1e3 * quantiles(counts[:, LATENCY:BATCHES])
    by_part = {
        name: spell_numbers(1e3 * sums[:, place] / (waited if name == "queue" else ran))
        for place, name in enumerate(PHASES, 1)
    }
    return {
        "requests": {
            name: spell_numbers(counts[:, place] / minutes) for place, name in enumerate(CLASSES)
        },
        "latency": {
            **{name: spell_numbers(latency[:, place]) for place, name in enumerate(QUANTILES)},
            "mean": spell_numbers(1e3 * sums[:, 0] / each),
        },
        "parts": by_part,
        "batch_size": spell_numbers(sums[:, -1] / ran),
        # Little's law: how many there are at once is how many end a second, times their seconds.
        "in_flight": spell_numbers((sums[:, 0] - queued) / (60 * minutes)),
        "queue": spell_numbers(queued / (60 * minutes)),
        "refused": series["refused"][:, 0].tolist(),
        "total": {**summarize(counts.sum(axis=0)), "refused": int(series["refused"].sum())},
    }


def summarize(counts: np.ndarray) -> dict[str, Any]:
    """The figures of a whole window: counts, and latencies in milliseconds."""
    classes = dict(zip(CLASSES, counts[:LATENCY].tolist()))
    latency = 1e3 * quantiles(counts[np.newaxis, LATENCY:BATCHES])[0]
    batches = counts[BATCHES:QUEUED].tolist()
    bounds = [*map(str, ROW_BOUNDS), "more"]
    return {
        "requests": sum(classes.values()),
        "by_status": classes,
        "latency": dict(zip(QUANTILES, spell_numbers(latency))),
        # how many requests were run in a batch of at most so many rows, above the bound before
        "batch_sizes": {name: n for name, n in zip(bounds, batches) if n},
    }


def spell_numbers(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON, to a thousandth; None for NaN."""
    rounded = np.round(values, 3).tolist()
    return [None if value != value else value for value in rounded]


# --- the process ----------------------------------------------------------------------------------

# Samples of a step are combined by their mean; those of `in_flight` by the maximum, of `refused` by
# the sum.
MEANS = ("queue", "cpu_percent", "memory_bytes", "gpu_memory_bytes", "gpu_utilisation_percent")


class Resources:
    """Samples of the process's resources: 27,456 bytes, 264 steps of 12 numbers and a stamp."""

    def __init__(self) -> None:
        columns = {
            "means": (len(MEANS), np.float64),
            "seen": (len(MEANS), np.float64),
            "most": (1, np.float64),
            "added": (1, np.float64),
        }
        self.rings = {name: Ring(window, **columns) for name, window in WINDOWS.items()}

    def add(self, now: float, seen: Mapping[str, float]) -> None:
        """Add a sample taken at `now`; a name of MEANS may be missing, if it is unknown."""
        for ring in self.rings.values():
            row, arrays = ring.place(now), ring.arrays
            for place, name in enumerate(MEANS):
                if name in seen:
                    arrays["means"][row, place] += seen[name]
                    arrays["seen"][row, place] += 1
            arrays["most"][row] = max(arrays["most"][row, 0], seen["in_flight"])
            arrays["added"][row] += seen["refused"]


def describe_resources(found: Mapping[str, np.ndarray]) -> dict[str, list[float | None]]:
    """Resources as /stats shows them: one list per figure, None for steps without a sample."""
    seen = found["seen"]
    means = found["means"] / np.where(seen, seen, np.nan)
    looked = seen[:, 0] > 0
    return {
        **{name: spell_numbers(means[:, place]) for place, name in enumerate(MEANS)},
        "in_flight": spell_numbers(np.where(looked, found["most"][:, 0], np.nan)),
        "refused": spell_numbers(np.where(looked, found["added"][:, 0], np.nan)),
    }


# --- over a restart -------------------------------------------------------------------------------

FORM = 2  # the version of the file's format; files of other versions are not read
# The fields of an entry of `last_errors`.
ERROR_FIELDS = {
    "time": float,
    "request_id": str,
    "method": str,
    "path": str,
    "status": int,
    "route": str,
    "model": str,
    "deployment": str,
    "by_page": bool,
    "error": str,
}


def pack_array(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 1)).decode()


def unpack_array(text: str, like: np.ndarray) -> np.ndarray:
    """Unpack an array with the shape and dtype of `like`; ValueError if it has another size."""
    packed = zlib.decompressobj()
    data = packed.decompress(base64.b64decode(text, validate=True), like.nbytes + 1)
    if len(data) != like.nbytes:
        raise ValueError(f"expected {like.nbytes} bytes of numbers, got {len(data)}")
    return np.frombuffer(data, like.dtype).reshape(like.shape).copy()


def pack_rings(rings: Mapping[str, Ring]) -> dict[str, dict[str, str]]:
    return {
        name: {
            "stamps": pack_array(ring.stamps),
            **{k: pack_array(v) for k, v in ring.arrays.items()},
        }
        for name, ring in rings.items()
    }


def unpack_rings(rings: Mapping[str, Ring], packed: Mapping[str, Mapping[str, str]]) -> None:
    for name, ring in rings.items():
        ring.stamps = unpack_array(packed[name]["stamps"], ring.stamps)
        ring.arrays = {k: unpack_array(packed[name][k], v) for k, v in ring.arrays.items()}


def spell_history(
    series: Mapping[tuple[str, str], Series], resources: Resources, errors: Iterable[Any]
) -> dict[str, Any]:
    """Everything as a JSON value; fast, because requests wait for the lock meanwhile."""
    return {
        "form": FORM,
        "bounds": BOUNDS.tolist(),
        "series": [[kind, name, pack_rings(one.rings)] for (kind, name), one in series.items()],
        "resources": pack_rings(resources.rings),
        "errors": list(errors),
    }


def load_history(
    path: Path,
) -> tuple[dict[tuple[str, str], Series], Resources, list[dict[str, Any]]]:
    """Read a file of `spell_history`'s JSON. Raises OSError; ValueError if it is not one."""
    try:
        found = json.loads(path.read_bytes())
        if found["form"] != FORM or found["bounds"] != BOUNDS.tolist():
            raise ValueError("it is of another version")
        series = {}
        for kind, name, packed in found["series"][: MOST_SERIES + 1]:
            one = series[str(kind), str(name)] = Series()
            unpack_rings(one.rings, packed)
        resources = Resources()
        unpack_rings(resources.rings, found["resources"])
        errors = [
            {name: kind(each[name]) for name, kind in ERROR_FIELDS.items()}
            for each in found["errors"]
        ]
    except (KeyError, TypeError, AttributeError, zlib.error, RecursionError) as error:
        raise ValueError(f"it is no history: {type(error).__name__}: {error}") from None
    return series, resources, errors
