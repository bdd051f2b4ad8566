"""Which models are in memory: `"load": "on_demand"`, the idle time-out, the budget of
`memory_budget_mb`.

OnDemand    a version that is served like any other, but is in memory only while it is used
Residency   loads and evicts models: the least recently used first, never a pinned one or one in use
"""

import logging
import math
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from .core import (
    IMPORTED,
    UNTRACED,
    WHICH,
    BadRequest,
    Call,
    Extension,
    Load,
    LoadError,
    LoadRequest,
    ModelConfig,
    ModelServer,
    NotFound,
    Outcome,
    Reply,
    Servable,
    ServerConfig,
    ServingError,
    SignatureCall,
    Trace,
    Workers,
    contents,
    describe,
    explain_folder,
    fingerprint,
    is_saved_model,
    log_safely,
    paths_below,
    read_graph,
    reply,
    route,
    settle_garbage,
    signatures_of,
    start_thread,
    tensorflow,
)

logger = logging.getLogger("serving")

RETRY_SECONDS = 5.0  # the shortest time between a failed load of a model and the next try
RESERVE = 1.5  # memory expected for a model that was never loaded, as a multiple of its files' size


class OnDemand(Servable):
    """A version whose signatures are read from its files, and whose model is loaded on request.

    `resident` is the model while it is in memory, else None.
    """

    folder: Path

    def __init__(self, residency: "Residency", request: LoadRequest):
        folder, config = request.folder, request.config
        # Files that must not change before a load. Until the first load these are only the graph's,
        # since the variables may still be being copied.
        graphs = [contents(fingerprint(path)) for path in folder.glob("saved_model.pb*")]
        self.files = {status for graph in graphs for status in graph}
        self.declared = set(contents(fingerprint(folder)))  # with these, a reload sees no change
        graph = read_graph(folder, config.tags)
        signatures = signatures_of(graph, folder)
        metadata = describe(graph.signature_def)
        super().__init__(signatures, metadata=metadata, close=self.forget)
        self.residency, self.folder, self.config = residency, folder, config
        self.request = request.with_config(load="eager")
        self.name = f"{config.name}/{version_of(folder, config)}"
        self.resident: Servable | None = None
        self.why, self.used_at, self.bytes = "not asked for yet", time.monotonic(), 0
        self.load_seconds = 0.0  # of the last load
        self.budget: int | None = None  # memory_budget_mb at the last load
        self.failed: tuple[float, str] = (-RETRY_SECONDS, "")
        self.loading = threading.Lock()
        residency.join(self)

    def call(
        self, name: str, inputs: dict[str, np.ndarray], trace: Trace = UNTRACED
    ) -> dict[str, np.ndarray]:
        with self.residency.use(self, trace) as resident:
            return resident.call(name, inputs, trace)

    @property
    def callables(self) -> Mapping[str, SignatureCall]:
        resident = self.resident
        return resident.callables if resident else {}

    def seconds_of(self, name: str) -> float:
        """Unknown, so infinite: a call may have to load the model first."""
        return float("inf")

    def hold(self) -> None:
        """Take one more lease; the caller has one already, so this works even while retiring."""
        with self._lock:
            self._leases += 1

    def forget(self) -> None:
        """Called when the version is retired: retire its model too."""
        self.residency.leave(self)
        resident = self.resident  # one read: another thread may evict it meanwhile
        if resident:
            resident.retire(1)  # a request that gave up on a load returns its lease as that ends


def version_of(folder: Path, config: ModelConfig) -> int:
    """The version number of a SavedModel's folder: `3`, or `3-<digest>` for the export of a Keras
    file; 1 for a model without version folders.
    """
    number = re.match(r"[0-9]+(?=-|$)", folder.name)
    return int(number[0]) if number and folder != Path(config.base_path) else 1


class Residency:
    """Loads models on request and evicts them: wraps `load`, the loader of permanent models.

    `options` returns the `server` section of the config in force.

    Each model has a lock, `loading`, so that it is loaded only once. With a budget, all loads take
    the lock `measuring` first and run one at a time, since a model's size is measured as the growth
    of the process. A load runs in a thread of its own; a request that waits for it, or for a lock,
    gives up at its deadline. Models that are not `on_demand` count in the budget, but are never
    evicted.
    """

    def __init__(self, options: Callable[[], ServerConfig], load: Load):
        self.options, self._load = options, load
        self.entries: weakref.WeakSet[OnDemand] = weakref.WeakSet()
        self.fixed: weakref.WeakKeyDictionary[Servable, int] = weakref.WeakKeyDictionary()
        self.measuring, self._changed = threading.Lock(), threading.Condition()
        self._loads = set[Future]()  # running loads
        self._sweeper: threading.Thread | None = None
        self._ending = threading.Event()

    def __call__(self, request: LoadRequest) -> Servable:
        """Load a version now, or, if it is `on_demand`, only read its signatures."""
        if request.config.load == "on_demand":
            try:
                return OnDemand(self, request)
            except OSError as error:
                folder = request.folder
                text = str(error).replace(str(folder), f"<base_path>/{folder.name}")
                hint = "" if is_saved_model(folder) else explain_folder(folder)
                raise LoadError(text + hint) from error
        if not self.has_budget():
            return self._load(request)
        with self.measuring:
            servable, size = self.measure(request)
            with self._changed:
                self.fixed[servable] = size
            self.keep_budget(f"made room for {request.config.name}")
        return servable

    def join(self, entry: OnDemand) -> None:
        with self._changed:
            self.entries.add(entry)

    def leave(self, entry: OnDemand) -> None:
        with self._changed:
            self.entries.discard(entry)

    def known(self) -> list[OnDemand]:
        """A copy of the entries, since other threads add to the set."""
        with self._changed:
            return list(self.entries)

    def memory_of(self, servable: Servable) -> int | None:
        """The measured bytes of a model in memory; None if it is not, or without a budget."""
        if isinstance(servable, OnDemand):
            return servable.bytes if servable.resident and self.has_budget() else None
        with self._changed:
            return self.fixed.get(servable)

    def has_budget(self) -> bool:
        return self.options().memory_budget_mb is not None

    def measure(self, request: LoadRequest) -> tuple[Servable, int]:
        """Load a version; returns it and the bytes by which the process grew, but at least the size
        of its files.

        Without a budget loads may overlap, so nothing is measured and the size of the files is
        returned.
        """
        if not self.has_budget():
            return self._load(request), size_of(request.folder)
        tensorflow()
        before = memory_now()
        servable = self._load(request)
        settle_garbage()  # so that temporary objects of the load are not counted
        return servable, max(memory_now() - before, size_of(request.folder))

    @contextmanager
    def use(self, entry: OnDemand, trace: Trace = UNTRACED) -> Iterator[Servable]:
        """Hold a lease on a version's model within a `with`, after loading it if needed."""
        resident = entry.resident
        if resident is None or not resident.acquire():
            resident = self.bring_in(entry, trace)
        entry.used_at = time.monotonic()
        try:
            yield resident
        finally:
            entry.used_at = time.monotonic()
            resident.release()
            with self._changed:
                self._changed.notify_all()

    def bring_in(self, entry: OnDemand, trace: Trace) -> Servable:
        """Load an entry's model, unless another request has done so meanwhile; returns it with a
        lease.

        Raises ServingError if the load fails, if there is no room by the deadline, or if the load
        takes longer. In the last case it goes on for later requests, and the entry cannot be
        retired until it ends.
        """
        trace.waited = True
        need = entry.bytes or int(RESERVE * size_of(entry.folder))
        end = time.monotonic() + seconds_left(self.options().load_wait_seconds, trace)
        while True:
            with ExitStack() as turns:
                entry.hold()
                turns.callback(entry.release)
                if self.has_budget():
                    turns.enter_context(self.turn(self.measuring, entry, trace))
                turns.enter_context(self.turn(entry.loading, entry, trace))
                resident = entry.resident
                if resident is not None and resident.acquire():
                    return resident
                failed_at, reason = entry.failed
                if time.monotonic() < failed_at + RETRY_SECONDS:
                    text = f"Model {entry.config.name} cannot be loaded: {reason}"
                    raise ServingError(text, "UNAVAILABLE")
                if self.make_room(entry, need):
                    return self.begin_load(entry, turns.pop_all(), trace)
            if time.monotonic() >= end:
                text = f"There is no room for model {entry.config.name}: all others are in use"
                raise ServingError(text, "UNAVAILABLE")
            with self._changed:  # both locks are released here, so others can load meanwhile
                self._changed.wait(0.1)

    def begin_load(self, entry: OnDemand, held: ExitStack, trace: Trace) -> Servable:
        """Load an entry's model in a thread of its own, which then releases the `held` locks."""
        try:
            coming = Workers(1, "serving-on-demand").submit(self.load_in_turn, entry, held)
        except ServingError:  # no thread can be had
            held.close()
            raise
        self._loads.add(coming)
        coming.add_done_callback(self._loads.discard)
        if not wait([coming], trace.timeout()).done:
            coming.add_done_callback(lambda done: done.exception() or done.result().release())
            raise ServingError(f"Model {entry.config.name} is still being loaded", "UNAVAILABLE")
        return coming.result()

    def load_in_turn(self, entry: OnDemand, turns: ExitStack) -> Servable:
        """Load an entry's model while the locks in `turns` are held, and release them.

        Returns it with the requester's lease: without one it could be evicted before it is used.
        """
        with turns:
            resident = self.load(entry)
            self.keep_budget(f"made room for {entry.config.name}", entry)
            resident.acquire()
            return resident

    @contextmanager
    def turn(self, lock: threading.Lock, entry: OnDemand, trace: Trace) -> Iterator[None]:
        """Hold a lock within a `with`; ServingError if the deadline passes before it is acquired.

        A call from Python has no deadline and waits as long as needed.
        """
        if not lock.acquire(timeout=trace.timeout()):
            raise ServingError(
                f"Model {entry.config.name} is still waiting to be loaded", "UNAVAILABLE"
            )
        try:
            yield
        finally:
            lock.release()

    def load(self, entry: OnDemand) -> Servable:
        start, files = time.perf_counter(), set(contents(fingerprint(entry.folder)))
        try:
            if not entry.files <= files and files != entry.declared:
                raise LoadError("its files have changed: a reload of the config loads them")
            resident, size = self.measure(entry.request)
        except ServingError as error:
            entry.failed = time.monotonic(), error.message
            entry.why = f"cannot be loaded: {error.message}"
            text = f"Model {entry.config.name} {entry.why}"
            raise ServingError(text, "UNAVAILABLE") from error
        entry.files = files
        entry.bytes, entry.used_at = size, time.monotonic()
        entry.load_seconds = time.perf_counter() - max([start, *IMPORTED])
        entry.budget = self.options().memory_budget_mb
        entry.device, entry.why = resident.device, "asked for"
        entry.resident = resident
        self.start_sweeping()
        logger.info(
            "%s is in memory on %s, %.0f MB, loaded in %.1f s",
            entry.name,
            entry.device,
            size / 2**20,
            entry.load_seconds,
        )
        return resident

    # --- eviction -------------------------------------------------------------------------------

    def used(self) -> int:
        """Bytes of all models in memory."""
        on_demand = sum(entry.bytes for entry in self.known() if entry.resident)
        with self._changed:
            fixed = list(self.fixed.items())
        return on_demand + sum(size for servable, size in fixed if not servable.closed)

    def make_room(self, wanted: OnDemand, need: int) -> bool:
        """Evict models until `need` bytes fit into the budget; False if all candidates are in use.

        `wanted` itself is not evicted.
        """
        budget = self.options().memory_budget_mb
        while budget is not None and self.used() + need > budget << 20:
            victims = self.evictable(wanted)
            if not victims:  # too large for the budget: log it, and try to load it anyway
                text = "%s needs about %d MB, more than memory_budget_mb leaves"
                logger.warning(text, wanted.name, math.ceil(need / 2**20))
                return True
            if not any(self.evict(one, f"made room for {wanted.config.name}") for one in victims):
                return False
        return True

    def keep_budget(self, why: str, spared: OnDemand | None = None) -> None:
        """Evict idle models until the rest fits the budget, or no more can be evicted."""
        budget = self.options().memory_budget_mb
        while budget is not None and self.used() > budget << 20:
            if not any(self.evict(entry, why) for entry in self.evictable(spared)):
                return

    def evictable(self, spared: OnDemand | None = None) -> list[OnDemand]:
        """The models in memory that are not pinned, least recently used first."""
        found = [entry for entry in self.known() if entry.resident and not entry.config.pinned]
        return sorted((e for e in found if e is not spared), key=lambda entry: entry.used_at)

    def evict(self, entry: OnDemand, why: str) -> bool:
        """Take a model out of memory, unless it is in use."""
        resident = entry.resident
        if resident is None or not entry.loading.acquire(blocking=False):
            return False
        try:  # a request for this model now waits for `loading`, until its deadline
            if not resident.retire_if_idle():
                return False
            entry.resident, entry.why = None, why
        finally:
            entry.loading.release()
        settle_garbage()
        log_safely(logging.INFO, "%s is no longer in memory: %s", entry.name, why)
        return True

    def start_sweeping(self) -> None:
        if self._sweeper is None:
            watched = weakref.ref(self), self._ending
            with suppress(ServingError):  # no thread: the next load starts one
                self._sweeper = start_thread("serving-on-demand", sweep, *watched)

    def end(self) -> None:
        """Wait for running loads and free all models; end the sweeper thread.

        A process that exits during a load by TensorFlow is aborted, hence the wait.
        """
        wait(self._loads.copy())
        for entry in self.known():
            entry.retire(0)
        self._ending.set()
        if self._sweeper is not None:
            self._sweeper.join()

    def sweep(self) -> None:
        """Evict models that were not used for `idle_seconds`, and models beyond a lowered budget.

        The latest model stays if the budget is the one it was loaded under: a single model larger
        than the budget would otherwise be evicted at once.
        """
        now = time.monotonic()
        for entry in self.known():
            idle = entry.config.idle_seconds
            if entry.resident and idle and not entry.config.pinned and now - entry.used_at > idle:
                self.evict(entry, f"idle for {idle:g} s")
        budget, last = self.options().memory_budget_mb, self.evictable()[-1:]
        spared = next((entry for entry in last if entry.budget == budget), None)
        self.keep_budget("beyond memory_budget_mb", spared)

    def read(self) -> dict[str, Any]:
        """The part of /stats about the budget."""
        return {
            "budget_mb": self.options().memory_budget_mb,
            "used_mb": round(self.used() / 2**20, 1),
        }


def sweep(residency: "weakref.ref[Residency]", ending: threading.Event) -> None:
    while not ending.wait(0.5) and (live := residency()) is not None:
        try:
            live.sweep()
        except Exception as error:  # the next sweep tries the rest
            log_safely(logging.ERROR, "Idle models could not be freed", error=error)
        del live


def seconds_left(most: float, trace: Trace) -> float:
    """How long a request may wait for a load: to its deadline where it has one, else `most`."""
    return most if trace.deadline == math.inf else trace.timeout()


def memory_now() -> int:
    """Bytes of memory that only this process uses (USS)."""
    return psutil.Process().memory_full_info().uss


def size_of(folder: Path) -> int:
    """Bytes of a version's files, or of the file if `folder` is one."""
    files = (str(folder), *paths_below(folder))
    return sum(os.path.getsize(path) for path in files if os.path.isfile(path))


def wrap_load(server: ModelServer, load: Load) -> Residency:
    """Make the Residency of a server."""
    residency = server.state["on_demand"] = Residency(lambda: server.config.server, load)
    return residency


def refresh(server: ModelServer, outcome: Outcome, polling: bool) -> None:
    """Apply options of a new config, such as `pinned`, to models that need no new load."""
    models = {config.name: config for config in server.config.models}
    for entry in server.state["on_demand"].known():
        entry.config = models.get(entry.config.name, entry.config)


# --- by hand --------------------------------------------------------------------------------------


@contextmanager
def named_entry(
    server: ModelServer, model: str, version: int | None = None, label: str | None = None
) -> Iterator[tuple[int, OnDemand]]:
    """Hold a lease on an on-demand version within a `with`, without loading or calling its model.

    Raises NotFound, and BadRequest for a version that is always in memory.
    """
    number, entry = server.start().manager.find(model, version, label)
    if not isinstance(entry, OnDemand):
        raise BadRequest(
            f"'{model}' is not on demand: it stays in memory while the config names it"
        )
    if not entry.acquire():
        raise NotFound(f"Servable not found for request: Specific({model}, {number})")
    try:
        yield number, entry
    finally:
        entry.release()


def view_load(server: ModelServer, call: Call, model: str, **which: Any) -> Reply:
    """Bring a version that is on demand into memory, as its first request would."""
    with named_entry(server, model, **which) as (number, entry):
        with entry.residency.use(entry, call.trace):
            pass
        return reply(describe_entry(model, number, entry))


def view_unload(server: ModelServer, call: Call, model: str, **which: Any) -> Reply:
    """Take a version that is on demand out of memory; the next request brings it back."""
    with named_entry(server, model, **which) as (number, entry):
        if entry.config.pinned:
            raise BadRequest(f"'{model}' is pinned: once loaded, it stays in memory")
        if not entry.residency.evict(entry, "freed by hand") and entry.resident:
            text = f"Version {number} of '{model}' is answering requests: free it when they end"
            raise ServingError(text, "UNAVAILABLE")
        return reply(describe_entry(model, number, entry))


def describe_entry(model: str, version: int, entry: OnDemand) -> dict[str, Any]:
    resident = entry.resident is not None
    return {"model": model, "version": str(version), "resident": resident, "why": entry.why}


EXTENSION = Extension(
    "on_demand",
    wrap_load=wrap_load,
    refresh=refresh,
    end=lambda server: server.state["on_demand"].end(),
    routes=(
        route(
            "POST",
            f"/v1/models/{{model}}{WHICH}/'load'",
            view_load,
            "shared",
            "Load an on_demand model into memory",
        ),
        route(
            "POST",
            f"/v1/models/{{model}}{WHICH}/'unload'",
            view_unload,
            "shared",
            "Unload an on_demand model",
        ),
    ),
)
