"""How each signature of a model is called: frozen, batched, on threads of its own, or plainly.

What comes in are the signatures as plain calls. Which of them is frozen or batched follows from the
graph and the config alone, never from a clock; on which thread one runs does not change its answer.
"""

import contextlib
import copy
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import Any

from serving import (
    CURRENT,
    LEAVING,
    Batching,
    ServingError,
    Signature,
    SignatureCall,
    clean_message,
    leaves_behind,
    make_calls,
    new_session,
    tensorflow,
    used_nodes,
)
from serving_extensions.batching import batch

logger = logging.getLogger("serving")

MOST_THREADS = 64  # of a model whose calls may take any time
LONG_SECONDS = 0.001  # a call that takes so long is worth a hand-over to another thread (30 us)

# What takes as long as its input, or somebody's code, wants.
UNBOUNDED = {
    "PyFunc",
    "PyFuncStateless",
    "EagerPyFunc",
    "While",
    "StatelessWhile",
    "NextIteration",
    "ReadFile",
    "WriteFile",
    "QueueDequeueV2",
}


def tune(
    session: Any,
    nodes: Mapping[str, list[Any]],
    signatures: Mapping[str, Signature],
    calls: dict[str, SignatureCall],
    device: str,
    config: Any,
    owned: contextlib.ExitStack,
) -> None:
    """Join what the config asks for; other calls that may take long have threads of their own.

    `nodes` are those that each call may run; `owned` closes what a model holds, the latest first.
    Raises LoadError where joined requests would be answered otherwise than alone.
    """
    options = Batching() if config.batching is True else config.batching
    waiting: dict[str, int] = {}  # how many threads those have that are handed over
    for name, call in calls.items():
        label = f"{config.name}: signature {name}"
        call = call._replace(bounded=not UNBOUNDED & {node.op for node in nodes[name]})
        if options and any(map(leaves_behind, nodes[name])):
            logger.warning("%s runs unbatched: its graph may keep something of a call", label)
        elif options:
            tries = config.warm_up
            call = batch(session, signatures[name], call, options, device, label, tries)
        if call.kind != "batched" and not (call.bounded and call.seconds < LONG_SECONDS):
            waiting[name] = count_threads(call, device)
        calls[name] = call
    pools = {
        count: Workers(count, f"model-{config.name}", owned)
        for count in sorted(set(waiting.values()))
    }
    for name, count in waiting.items():
        calls[name] = calls[name]._replace(run=partial(pools[count].run, calls[name].run))


def count_threads(call: SignatureCall, device: str) -> int:
    """How many calls of a kind run at once: as many as cores of those that only compute.

    More would take turns, each with less of the caches, and TensorFlow keeps what oneDNN has
    prepared for each thread: on thirty threads it would be held thirty times.
    """
    computes = call.bounded and call.seconds < float("inf") and device.startswith("CPU")
    return len(os.sched_getaffinity(0)) if computes else MOST_THREADS


# ==================================================================================================
# One function under two names
# ==================================================================================================


def find_twins(graph: Any, signatures: Mapping[str, Signature]) -> dict[str, str]:
    """Signatures that are another one under a second name, by the name of that other: Keras exports `serve` and `serving_default`.

    They call functions that are equal but for their names, with the same variables.
    """
    nodes = {node.name: node for node in graph.node}
    functions = {function.signature.name: function for function in graph.library.function}
    first, twins = dict[Any, str](), dict[str, str]()
    for name in sorted(signatures, key=lambda name: (name != "serving_default", name)):
        key = call_key(signatures[name], nodes, functions)
        if key and first.setdefault(key, name) != name:
            twins[name] = first[key]
    return twins


def call_key(
    signature: Signature, nodes: Mapping[str, Any], functions: Mapping[str, Any]
) -> tuple | None:
    """What two signatures have in common that are the same; None for one that is not a single function's call."""
    callers = {spec.tensor.split(":")[0] for spec in signature.outputs.values()}
    call = nodes.get(callers.pop()) if len(callers) == 1 else None
    if call is None or call.attr["f"].func.name not in functions:
        return None
    feeds = {
        spec.tensor.split(":")[0]: (name, spec.dtype, spec.shape)
        for name, spec in signature.inputs.items()
    }
    fetches = tuple(
        (name, spec.dtype, spec.shape, spec.tensor.split(":")[-1])
        for name, spec in signature.outputs.items()
    )
    function = copy.deepcopy(functions[call.attr["f"].func.name])
    function.signature.ClearField("name")
    for attributes in function.arg_attr.values():
        attributes.attr.pop("_user_specified_name", None)
    others = sorted(
        (name, value.SerializeToString(deterministic=True))
        for name, value in call.attr.items()
        if name != "f"
    )
    inputs = tuple(feeds.get(tensor.split(":")[0], tensor) for tensor in call.input)
    return (
        call.op,
        inputs,
        tuple(feeds.values()),
        fetches,
        tuple(others),
        function.SerializeToString(deterministic=True),
    )


# ==================================================================================================
# Threads of a model's own
# ==================================================================================================


class Workers:
    """Threads for the calls of one model, up to `count`, started when needed; first come first.

    A request whose time is over is told so, and its call runs on. A session waits in its close for
    what runs in it, for ever where a model hangs: what `owned` holds is from now on closed when no
    call runs.
    """

    def __init__(self, count: int, name: str, owned: contextlib.ExitStack):
        self.jobs: queue.SimpleQueue = queue.SimpleQueue()
        self.count, self.name = count, name
        self.started = self.open = 0  # threads; jobs that are not done
        self._lock = threading.Lock()
        self._held = owned.pop_all()
        self._closing = False
        owned.callback(self.close)

    def run(self, function: Callable, *arguments: Any) -> Any:
        """Run a function when a thread is free; ServingError at the request's deadline, and what waits then never runs."""
        trace = getattr(CURRENT, "trace", None)
        if trace is None:
            return self.submit(function, *arguments).result()
        future = self.submit(function, *arguments, wanted=lambda: not trace.has_left())
        try:
            return future.result(
                max(0.0, trace.remaining()) if trace.deadline < float("inf") else None
            )
        except CancelledError:
            raise ServingError("The client has left", "CANCELLED") from None
        except FutureTimeoutError:
            if future.done() and not future.cancelled():  # the function's own TimeoutError
                raise
            future.cancel()
            raise ServingError(
                "The model took longer than the request's time", "DEADLINE_EXCEEDED"
            ) from None

    def submit(
        self, function: Callable, *arguments: Any, wanted: Callable[[], bool] = lambda: True
    ) -> Future:
        future: Future = Future()
        with self._lock:
            self.open += 1
            if self.started < min(self.open, self.count):
                threading.Thread(
                    target=self.work, name=f"{self.name}-{self.started}", daemon=True
                ).start()
                self.started += 1
        self.jobs.put((future, wanted, function, arguments))
        return future

    def work(self) -> None:
        while (job := self.jobs.get()) is not None:
            future, wanted, function, arguments = job
            if not wanted():
                future.cancel()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*arguments))
                except BaseException as error:
                    future.set_exception(error)
            with self._lock:
                self.open -= 1
                last = self._closing and not self.open
            if last:
                self._held.close()
            del job, future, wanted, function, arguments  # an answer is not held until the next one

    def close(self) -> None:
        """Let the threads end, each after what it runs; what they have used is closed now, or by the last of them."""
        with self._lock:
            self._closing, idle = True, not self.open
        for _ in range(self.started):
            self.jobs.put(None)
        if idle:
            self._held.close()


# ==================================================================================================
# Frozen graphs
# ==================================================================================================

FREEZE_BYTES = 200 << 20  # of variables; for a moment they are held several times
GAINING = {"Conv2D", "Conv3D", "DepthwiseConv2dNative"}  # the gain is in their weights
HOLDERS = {"StatefulPartitionedCall", "While", "If", "Case"}  # the state is of what they call


def freeze(
    session: Any,
    graph: Any,
    nodes: Mapping[str, list[Any]],
    plans: Mapping[str, SignatureCall],
    device: str,
    config: Any,
    owned: contextlib.ExitStack,
) -> tuple[Any, dict[str, SignatureCall]] | None:
    """A session over the graph with its variables as constants, and the planned calls in it.

    TensorFlow prepares constants once (oneDNN's layout of weights, sums and products of constants)
    that it must take as they come from variables. Sums may be rounded otherwise in the last bit.
    None where nothing gains by that, or something has a state.
    """
    kinds = {node.op for name in plans for node in nodes[name]}
    small = 0 < variable_bytes(session.graph) <= FREEZE_BYTES
    if not config.freeze or not device.startswith("CPU") or not small or not GAINING & kinds:
        return None
    frozen: Any = None
    calls, refused = dict[str, SignatureCall](), dict[str, str]()
    try:
        frozen = open_frozen(session, graph, plans, device)
        if frozen is not None:
            calls = make_calls(frozen, plans, refused)
    except Exception as error:  # no public interface of TensorFlow's, and graphs are of all kinds
        refused[""] = clean_message(str(error))
    if frozen is None or refused:
        logger.debug("%s is not frozen: %s", config.name, refused or "it has a state")
        if frozen is not None:
            frozen.close()
        return None
    owned.pop_all().close()  # the session; with it goes its graph, which nobody needs any more
    owned.callback(LEAVING.add, frozen.graph)
    owned.callback(frozen.close)
    return frozen, {name: call._replace(kind="frozen") for name, call in calls.items()}


def variable_bytes(graph: Any) -> int:
    """The size of a graph's variables."""
    count = 0
    for operation in graph.get_operations():
        if operation.type == "VarHandleOp":
            shape = tensorflow().TensorShape(operation.get_attr("shape"))
            count += operation.get_attr("dtype").size * (shape.num_elements() or 0)
    return count


def open_frozen(
    session: Any, graph: Any, plans: Mapping[str, SignatureCall], device: str
) -> Any | None:
    """A session over what calls need of the graph, frozen; None where something has a state."""
    from tensorflow.python.framework import convert_to_constants

    convert = convert_to_constants.convert_variables_to_constants_from_session_graph
    wanted = [
        tensor.split(":")[0] for plan in plans.values() for tensor in (*plan.feeds, *plan.fetches)
    ]
    constant = convert(session, graph, wanted)
    if any(has_state(used_nodes(constant, plan)) for plan in plans.values()):
        return None
    with new_session(device, session_options()) as frozen:
        tensorflow().graph_util.import_graph_def(constant, name="")
    return frozen


def has_state(nodes: Iterable[Any]) -> bool:
    """Whether an operation has a state: variables, tables, random numbers, Python functions."""
    from tensorflow.python.framework import op_def_registry

    definitions = map(op_def_registry.get, {node.op for node in nodes} - HOLDERS)
    return any(definition is None or definition.is_stateful for definition in definitions)


def session_options() -> Any:
    """What TensorFlow opens a session with, less a graph that nobody asks for.

    It has all constants once more.
    """
    from tensorflow.python.eager import context

    options = context.context().config
    options.experimental.disable_output_partition_graphs = True
    return options
