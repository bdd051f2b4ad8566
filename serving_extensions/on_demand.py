"""Which models are in memory: `"load": "on_demand"`, the idle time-out, the budget of
`memory_budget_mb`.

OnDemand    a version that is served as any other, its model in memory only while it is wanted
Residency   loads and evicts: the least recently used goes first, none that is pinned or in use
"""

import logging
import math
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    find_graph,
    fingerprint,
    is_saved_model,
    log_safely,
    paths_below,
    read_graphs,
    read_signatures,
    rename_tensors,
    reply,
    route,
    settle_garbage,
    start_thread,
    tensorflow,
)

logger = logging.getLogger("serving")

RETRY_SECONDS = 5.0  # a model that could not be loaded is not tried again sooner
RESERVE = 1.5  # of its files' size: what a model that was never loaded is expected to need


class OnDemand(Servable):
    """A version known by its files alone until somebody asks.

    `resident` is its model while that is in memory.
    """

    folder: Path

    def __init__(self, residency: "Residency", request: LoadRequest):
        folder, config = request.folder, request.config
        # what may not change by itself: its graph alone until it is loaded, since its variables
        # may still be copied
        graphs = [contents(fingerprint(path)) for path in folder.glob("saved_model.pb*")]
        self.files = {status for graph in graphs for status in graph}
        self.declared = set(contents(fingerprint(folder)))  # a reload finds nothing new in these
        definitions = read_definitions(folder, config.tags)
        rename_tensors(definitions, folder)
        metadata = describe(definitions)
        signatures = read_signatures(folder, config.tags)
        super().__init__(signatures, metadata=metadata, close=self.forget)
        self.residency, self.folder, self.config = residency, folder, config
        self.request = request.with_config(load="eager")
        self.name = f"{config.name}/{version_of(folder, config)}"
        self.resident: Servable | None = None
        self.why, self.used_at, self.bytes = "not asked for yet", time.monotonic(), 0
        self.load_seconds = 0.0  # of its last load
        self.budget: int | None = None  # at that time, in MiB
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
        """Nobody knows: it may have to be loaded."""
        return float("inf")

    def hold(self) -> None:
        """Take a lease beside one that there is, so also while the version is being retired."""
        with self._lock:
            self._leases += 1

    def forget(self) -> None:
        """The version is retired."""
        self.residency.leave(self)
        resident = self.resident  # it may be evicted meanwhile
        if resident:
            resident.retire(1)  # who gave up returns a lease just when the load has ended


def version_of(folder: Path, config: ModelConfig) -> int:
    """The version that a SavedModel's folder is, `3` or the export `3-<digest>` of a Keras file;
    1 of a model without version folders.
    """
    number = re.match(r"[0-9]+(?=-|$)", folder.name)
    return int(number[0]) if number and folder != Path(config.base_path) else 1


def read_definitions(folder: Path, tags: Sequence[str] = ("serve",)) -> dict[str, Any]:
    """The SignatureDefs of a SavedModel, by name, read from its file."""
    tensorflow()
    return dict(find_graph(read_graphs(folder), tags).signature_def)


class Residency:
    """Brings models into memory and out of it: a loader around `load`, which loads for good.

    `options` is the config's `server`, as it is in force.

    Each model is loaded once, under its own `loading`; where there is a budget, one after the
    other, under `measuring`, since what a load takes is what the process grows by. A request that
    waits for either, or for the load itself, which has a thread of its own, gives up at its
    deadline. Models that are not `on_demand` count as well, and stay.
    """

    def __init__(self, options: Callable[[], ServerConfig], load: Load):
        self.options, self._load = options, load
        self.entries: weakref.WeakSet[OnDemand] = weakref.WeakSet()
        self.fixed: weakref.WeakKeyDictionary[Servable, int] = weakref.WeakKeyDictionary()
        self.measuring, self._changed = threading.Lock(), threading.Condition()
        self._loads = set[Future]()  # those that run
        self._sweeper: threading.Thread | None = None
        self._ending = threading.Event()

    def __call__(self, request: LoadRequest) -> Servable:
        """Load a version: at once, or declared only."""
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
        """The entries there are now; several threads add to them."""
        with self._changed:
            return list(self.entries)

    def memory_of(self, servable: Servable) -> int | None:
        """Bytes that a model in memory was measured to take, where there is a budget."""
        if isinstance(servable, OnDemand):
            return servable.bytes if servable.resident and self.has_budget() else None
        with self._changed:
            return self.fixed.get(servable)

    def has_budget(self) -> bool:
        return self.options().memory_budget_mb is not None

    def measure(self, request: LoadRequest) -> tuple[Servable, int]:
        """Load a version; returns it and the bytes that it has added to the process, no fewer than
        its files have.

        Without a budget others may load meanwhile, and nothing is measured: it is taken to have as
        many as its files.
        """
        if not self.has_budget():
            return self._load(request), size_of(request.folder)
        tensorflow()
        before = memory_now()
        servable = self._load(request)
        settle_garbage()  # what loading leaves over is no part of the model
        return servable, max(memory_now() - before, size_of(request.folder))

    @contextmanager
    def use(self, entry: OnDemand, trace: Trace = UNTRACED) -> Iterator[Servable]:
        """A version's model, loaded if it is not there, kept from eviction within a `with`."""
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
        """Load an entry's model, unless another has meanwhile; returns it with a lease.

        Raises ServingError when that fails, when there is no room until the deadline, or when it
        takes longer: it is loaded all the same, for who comes later, and not retired before.
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
            with self._changed:  # and no turn is held: others load meanwhile
                self._changed.wait(0.1)

    def begin_load(self, entry: OnDemand, held: ExitStack, trace: Trace) -> Servable:
        """Load an entry's model in a thread of its own, which ends the turns that are held."""
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
        """Load an entry's model while its turns are held, and end them.

        Returns it with a lease of who has asked: else it may be evicted before it has answered.
        """
        with turns:
            resident = self.load(entry)
            self.keep_budget(f"made room for {entry.config.name}", entry)
            resident.acquire()
            return resident

    @contextmanager
    def turn(self, lock: threading.Lock, entry: OnDemand, trace: Trace) -> Iterator[None]:
        """Hold a lock within a `with`; ServingError if a request's deadline comes before that.

        A call from Python waits as long as it takes: it holds no client up.
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
            entry.failed, entry.why = (
                (time.monotonic(), error.message),
                f"cannot be loaded: {error.message}",
            )
            raise ServingError(
                f"Model {entry.config.name} cannot be loaded: {error.message}", "UNAVAILABLE"
            ) from error
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
        """Evict until `need` bytes fit beside the rest; False while all that could leave is in use.

        `wanted` itself stays.
        """
        budget = self.options().memory_budget_mb
        while budget is not None and self.used() + need > budget << 20:
            victims = self.evictable(wanted)
            if not victims:  # what is larger than the budget is tried all the same, and said
                text = "%s needs about %.0f MB, more than memory_budget_mb leaves"
                logger.warning(text, wanted.name, need / 2**20)
                return True
            if not any(self.evict(one, f"made room for {wanted.config.name}") for one in victims):
                return False
        return True

    def keep_budget(self, why: str, spared: OnDemand | None = None) -> None:
        """Evict what is idle until the rest fits the budget, as far as it can."""
        budget = self.options().memory_budget_mb
        while budget is not None and self.used() > budget << 20:
            if not any(self.evict(entry, why) for entry in self.evictable(spared)):
                return

    def evictable(self, spared: OnDemand | None = None) -> list[OnDemand]:
        """What is in memory and may leave it, the least recently used first."""
        found = [entry for entry in self.known() if entry.resident and not entry.config.pinned]
        return sorted((e for e in found if e is not spared), key=lambda entry: entry.used_at)

    def evict(self, entry: OnDemand, why: str) -> bool:
        """Take a model out of memory, unless it is in use."""
        resident = entry.resident
        if resident is None or not entry.loading.acquire(blocking=False):
            return False
        try:  # who asks for it meanwhile waits for `loading`, to its deadline
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
        """Wait for the loads that run and free what they bring; end the thread that looks for idle
        models. A process that ends within a load of TensorFlow's is aborted.
        """
        wait(self._loads.copy())
        for entry in self.known():
            entry.retire(0)
        self._ending.set()
        if self._sweeper is not None:
            self._sweeper.join()

    def sweep(self) -> None:
        """Evict what nobody has asked for in `idle_seconds`, and what is beyond a budget that was
        lowered: what is larger than the budget it came into stays until another one comes.
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
        """What /stats says of the budget."""
        return {
            "budget_mb": self.options().memory_budget_mb,
            "used_mb": round(self.used() / 2**20, 1),
        }


def sweep(residency: "weakref.ref[Residency]", ending: threading.Event) -> None:
    while not ending.wait(0.5) and (live := residency()) is not None:
        try:
            live.sweep()
        except Exception as error:  # the others are looked at the next time
            log_safely(logging.ERROR, "Idle models could not be freed", error=error)
        del live


def seconds_left(most: float, trace: Trace) -> float:
    """How long a request may wait for a load: to its deadline where it has one, else `most`."""
    return most if trace.deadline == math.inf else trace.timeout()


def memory_now() -> int:
    """Bytes that this process alone holds."""
    return psutil.Process().memory_full_info().uss


def size_of(folder: Path) -> int:
    """Bytes of a version's files, or of the file that it is."""
    files = (folder, *paths_below(folder))
    return sum(path.stat().st_size for path in files if os.path.isfile(path))


def wrap_load(server: ModelServer, load: Load) -> Residency:
    """The models of a server that come and go."""
    residency = server.state["on_demand"] = Residency(lambda: server.config.server, load)
    return residency


def refresh(server: ModelServer, outcome: Outcome, polling: bool) -> None:
    """Take over what a config says of models that stay as they are loaded: `pinned` and such."""
    models = {config.name: config for config in server.config.models}
    for entry in server.state["on_demand"].known():
        entry.config = models.get(entry.config.name, entry.config)


# --- by hand --------------------------------------------------------------------------------------


@contextmanager
def named_entry(
    server: ModelServer, model: str, version: int | None = None, label: str | None = None
) -> Iterator[tuple[int, OnDemand]]:
    """A version that is on demand, not retired within a `with`; this is no call of the model.

    Raises NotFound, and BadRequest for one that is always in memory.
    """
    number, entry = server.start().manager.find(model, version, label)
    if not isinstance(entry, OnDemand):
        raise BadRequest(
            f"'{model}' is not on demand: it is in memory as long as the config names it"
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
            "Bring a model that is on demand into memory",
        ),
        route(
            "POST",
            f"/v1/models/{{model}}{WHICH}/'unload'",
            view_unload,
            "shared",
            "Take a model that is on demand out of memory",
        ),
    ),
)
