"""How each signature of a model is called best: batched, frozen, on threads of the model's own, or plainly.

What comes in are the signatures as plain session calls, timed with made-up input; `tune` puts better ones in their places
where that is right, and wanted or measured to gain. What cannot be improved stays as it was.
"""

import contextlib
import copy
import functools
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import numpy as np

from serving import (
    CURRENT,
    LEAVING,
    Batching,
    SignatureCall,
    ServingError,
    Signature,
    clean_message,
    make_callable,
    new_session,
    sample_inputs,
    tensorflow,
    time_call,
)
from serving_rooms.batching import choose_batching
from serving_rooms.objects import called_functions

logger = logging.getLogger("serving")

MOST_THREADS = 64  # of a model whose calls could not be tried
LONG_SECONDS = 0.001  # a call that takes so long is worth a hand-over to another thread (30 us)


def tune(session: Any, signatures: Mapping[str, Signature], calls: dict[str, SignatureCall], device: str, config: Any,
         owned: contextlib.ExitStack) -> None:
    """Replace calls by better ones. `owned` closes what a model holds, the latest first: what is made here is added to it."""
    kinds = operations(session.graph)
    bounded = not UNBOUNDED & kinds
    if config.freeze and device.startswith("CPU") and GAINING & kinds:
        session = freeze(session, signatures, calls, device, config.name, owned) or session
    long, unknown = list[str](), list[str]()
    for name, plain in calls.items():
        call = calls[name] = plain._replace(bounded=bounded)
        batched = batch(session, name, signatures[name], call, device, config) if call.seconds < float("inf") else call.run
        if batched is not call.run:
            calls[name] = call._replace(run=batched, kind="batched")
        elif not bounded or call.seconds == float("inf"):
            unknown.append(name)
        elif device.startswith("CPU") and call.seconds >= LONG_SECONDS:
            long.append(name)
    if long:
        wide = open_wide(session, signatures, {name: calls[name] for name in long}, device, config.name, owned)
        workers = Workers(len(os.sched_getaffinity(0)), f"model-{config.name}", owned)
        for name in long:  # what oneDNN prepares, it prepares for each thread
            strings = any(spec.dtype == "DT_STRING" for spec in signatures[name].inputs.values())  # made-up ones are no examples
            inputs = sample_inputs(signatures[name], 0 if strings else 1)
            for run in filter(None, (calls[name].run, wide.get(name))):
                workers.run_on_each(functools.partial(run, *inputs))
            calls[name] = calls[name]._replace(run=functools.partial(run_alone, workers, calls[name].run, wide.get(name, calls[name].run)))
    if unknown:  # it may take long, and may do else than compute
        workers = Workers(MOST_THREADS, f"model-{config.name}", owned)
        for name in unknown:
            calls[name] = calls[name]._replace(run=functools.partial(workers.run, calls[name].run))


def find_twins(graph: Any, signatures: Mapping[str, Signature]) -> dict[str, str]:
    """Signatures that are another one under a second name, by the name of that other: Keras exports `serve` and `serving_default`.

    They call functions that are equal but for their names, with the same variables.
    """
    definition = graph.as_graph_def()
    nodes = {node.name: node for node in definition.node}
    functions = {function.signature.name: function for function in definition.library.function}
    first, twins = dict[Any, str](), dict[str, str]()
    for name in sorted(signatures, key=lambda name: (name != "serving_default", name)):
        key = call_key(signatures[name], nodes, functions)
        if key and first.setdefault(key, name) != name:
            twins[name] = first[key]
    return twins


def call_key(signature: Signature, nodes: Mapping[str, Any], functions: Mapping[str, Any]) -> tuple | None:
    """What two signatures have in common that are the same; None for one that is not a single function's call."""
    callers = {spec.tensor.split(":")[0] for spec in signature.outputs.values()}
    call = nodes.get(callers.pop()) if len(callers) == 1 else None
    if call is None or call.attr["f"].func.name not in functions:
        return None
    feeds = {spec.tensor.split(":")[0]: (name, spec.dtype, spec.shape) for name, spec in signature.inputs.items()}
    fetches = tuple((name, spec.dtype, spec.shape, spec.tensor.split(":")[-1]) for name, spec in signature.outputs.items())
    function = copy.deepcopy(functions[call.attr["f"].func.name])
    function.signature.ClearField("name")
    for attributes in function.arg_attr.values():
        attributes.attr.pop("_user_specified_name", None)
    others = sorted((name, value.SerializeToString(deterministic=True)) for name, value in call.attr.items() if name != "f")
    inputs = tuple(feeds.get(tensor.split(":")[0], tensor) for tensor in call.input)
    return (call.op, inputs, tuple(feeds.values()), fetches, tuple(others), function.SerializeToString(deterministic=True))


# What takes as long as its input, or somebody's code, wants.
UNBOUNDED = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "While", "StatelessWhile", "NextIteration", "ReadFile",
             "WriteFile", "QueueDequeueV2"}


def operations(graph: Any) -> set[str]:
    """The kinds of operations in a graph and its functions."""
    definition = graph.as_graph_def()
    functions = (node for function in definition.library.function for node in function.node_def)
    return {node.op for node in itertools.chain(definition.node, functions)}


def batch(session: Any, name: str, signature: Signature, call: SignatureCall, device: str, config: Any) -> Callable:
    """The signature batched, where that is right, and wanted or measured to gain; else as it was."""
    if config.batching is False:
        return call.run
    try:
        return choose_batching(tensorflow(), session, signature, call.run, call.seconds, device, config.batching, Batching(),
                               functools.partial(sample_inputs, signature), make_callable, label=f"{config.name}: signature {name}")
    except (tensorflow().errors.OpError, ValueError, TypeError) as error:  # such as a graph that takes one row only
        logger.warning("%s: signature %s runs unbatched: %s", config.name, name, clean_message(str(error)))
        return call.run


# ======================================================================================================
# Threads of a model's own
# ======================================================================================================


class Workers:
    """Threads for the calls of one model, up to `count`, started when they are needed; first come, first served.

    There are as many as cores for calls that compute: more at once would only take turns, each with less of the caches. And
    TensorFlow keeps what oneDNN has prepared for each thread: on thirty threads it would be prepared, and held, thirty times.

    What `owned` holds is from now on closed when no call runs: one whose request has been given up runs on, and a session waits
    in its close for what runs in it, for ever where a model hangs.
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
            return future.result(max(0.0, trace.remaining()) if trace.deadline < float("inf") else None)
        except CancelledError:
            raise ServingError("The client has left", "CANCELLED") from None
        except FutureTimeoutError:
            if future.done() and not future.cancelled():  # the function's own TimeoutError
                raise
            future.cancel()
            raise ServingError("The model took longer than the request's time", "DEADLINE_EXCEEDED") from None

    def submit(self, function: Callable, *arguments: Any, wanted: Callable[[], bool] = lambda: True) -> Future:
        future: Future = Future()
        with self._lock:
            self.open += 1
            if self.started < min(self.open, self.count):
                threading.Thread(target=self.work, name=f"{self.name}-{self.started}", daemon=True).start()
                self.started += 1
        self.jobs.put((future, wanted, function, arguments))
        return future

    def run_on_each(self, function: Callable[[], Any]) -> None:
        """Run a function once on each thread; raises what it raises."""
        barrier = threading.Barrier(self.count)

        def once() -> None:
            barrier.wait()
            function()
        for future in [self.submit(once) for _ in range(self.count)]:
            future.result()

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


# ======================================================================================================
# Frozen graphs
# ======================================================================================================

FREEZE_SECONDS = 0.002  # below, a call is mostly not arithmetic
FREEZE_BYTES = 200 << 20  # of variables; for a moment they are held several times
GAIN = 1.1
GAINING = {"Conv2D", "Conv3D", "DepthwiseConv2dNative"}  # the gain is in their weights and what follows them; others are not worth a try
HOLDERS = {"StatefulPartitionedCall", "While", "If"}  # they have the state of what they call


def freeze(session: Any, signatures: Mapping[str, Signature], calls: dict[str, SignatureCall], device: str, label: str,
           owned: contextlib.ExitStack) -> Any | None:
    """A session over the graph with its variables as constants, if it answers the same, faster: calls are replaced, the old one closed.

    TensorFlow prepares constants once (oneDNN's layout of weights, sums and products of constants) that it must take as they
    come from variables. Sums may be rounded otherwise in the last bit: answers have to agree within `agrees`.
    """
    slowest = max((call.seconds for call in calls.values()), default=float("inf"))
    if not FREEZE_SECONDS <= slowest < float("inf") or not 0 < variable_bytes(session.graph) <= FREEZE_BYTES:
        return None
    frozen: Any = None
    try:
        frozen = open_frozen(session, signatures, calls, device)
        if frozen is None:
            return None
        better = {name: call._replace(run=make_callable(frozen, call.feeds, call.fetches), kind="frozen") for name, call in calls.items()}
        same = all(agrees(old, new) for name in calls for inputs in samples(signatures[name])
                   for old, new in zip(calls[name].run(*inputs), better[name].run(*inputs), strict=True))
        timed = {name: time_in_turns(calls[name].run, better[name].run, sample_inputs(signatures[name], 1)) for name in calls}
        gain = sum(before for before, _ in timed.values()) / sum(after for _, after in timed.values())
    except Exception as error:  # it is not in TensorFlow's public interface, and graphs are of all kinds
        logger.debug("%s is not frozen: %s", label, error)
        same, gain, better = False, 0.0, {}
    if not same or gain < GAIN:
        logger.debug("%s is not frozen: answers %s, %.2f times as fast", label, "agree" if same else "differ", gain)
        if frozen:
            frozen.close()
        return None
    owned.pop_all().close()  # the session; with it goes its graph, which nobody needs any more
    owned.callback(LEAVING.add, frozen.graph)
    owned.callback(frozen.close)
    calls.update({name: call._replace(seconds=timed[name][1]) for name, call in better.items()})
    return frozen


def time_in_turns(one: Callable, other: Callable, inputs: Sequence[np.ndarray]) -> tuple[float, float]:
    """Seconds of the quickest call of each, some calls at a time in turns: what disturbs the machine for a while disturbs both.

    Call by call they would push each other's weights out of the caches.
    """
    seconds, begun = [float("inf"), float("inf")], time.perf_counter()
    for _ in range(3):
        for place, call in enumerate((one, other)):
            seconds[place] = min(seconds[place], time_call(call, inputs))
        if time.perf_counter() - begun > 2.0:
            break
    return seconds[0], seconds[1]


def samples(signature: Signature) -> list[list[np.ndarray]]:
    """Two made-up inputs: bytes of 0..255, as pictures have, floats of 0..1 and of 0..255, other numbers 0 or 1."""
    def pixels(array: np.ndarray, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, array.shape, np.uint8) if array.dtype == np.uint8 else array
    return [[pixels(array * array.dtype.type(scale) if array.dtype.kind == "f" else array, seed)
             for array in sample_inputs(signature, 1, seed)] for seed, scale in enumerate((1, 255))]


def agrees(old: np.ndarray, new: np.ndarray) -> bool:
    """Whether two answers are the same but for rounding, a thousand times the precision of their dtype.

    What a detector sorts by score may change places where scores are equal but for rounding: then the numbers are the same as a set.
    """
    old, new = np.asarray(old), np.asarray(new)
    if old.dtype != new.dtype or old.shape != new.shape or old.dtype.kind != "f":
        return old.dtype == new.dtype and np.array_equal(old, new)
    tolerance = min(1000 * float(np.finfo(old.dtype).eps), 0.01)
    largest = float(np.abs(old[np.isfinite(old)]).max(initial=0))

    def is_close(a: np.ndarray, b: np.ndarray) -> bool:
        return np.allclose(a, b, rtol=tolerance, atol=tolerance * largest, equal_nan=True)
    return is_close(old, new) or is_close(np.sort(old, axis=None), np.sort(new, axis=None))


def variable_bytes(graph: Any) -> int:
    """The size of a graph's variables."""
    handles = [op for op in graph.get_operations() if op.type == "VarHandleOp"]
    shapes = [(op.get_attr("dtype").size, tensorflow().TensorShape(op.get_attr("shape")).num_elements()) for op in handles]
    return sum(size * (count or 0) for size, count in shapes)


def open_frozen(session: Any, signatures: Mapping[str, Signature], calls: Mapping[str, SignatureCall], device: str) -> Any | None:
    """A session over what the signatures need of the graph, frozen; None where something in it has a state of its own."""
    from tensorflow.python.framework import convert_to_constants
    tf = tensorflow()
    wanted = [tensor.split(":")[0] for call in calls.values() for tensor in (*call.feeds, *call.fetches)]
    graph = convert_to_constants.convert_variables_to_constants_from_session_graph(session, session.graph.as_graph_def(), wanted)
    if has_state(graph):
        return None
    with new_session(device, session_options()) as frozen:
        tf.graph_util.import_graph_def(graph, name="")
    return frozen


def has_state(graph: Any) -> bool:
    """Whether any operation of a GraphDef has a state: variables, tables, random numbers, Python functions."""
    from tensorflow.python.framework import op_def_registry
    functions = called_functions(graph)
    stateless = HOLDERS | {function.signature.name for function in functions}
    kinds = {node.op for node in itertools.chain(graph.node, *(function.node_def for function in functions))} - stateless
    return any(definition is None or definition.is_stateful for definition in map(op_def_registry.get, kinds))


# ======================================================================================================
# A lone request on all cores
# ======================================================================================================

OWN_THREADS = threading.Event()  # each session of this process has threads of its own
WIDE_SECONDS = 0.02  # of a call that is worth a session more (a second to open, its weights once more)
WIDE_GAIN = 1.2


def own_threads(tf: Any) -> None:
    """Give each session threads of its own to share an operation among, where calls have one: TensorFlow has one pool for all else.

    It reads the variable once, when the first device is made; where a host has made one before, it has no effect, and nothing gains.
    """
    name = "TF_OVERRIDE_GLOBAL_THREADPOOL"
    if name in os.environ or tf.config.threading.get_intra_op_parallelism_threads() != 1 or tf.config.list_physical_devices("GPU"):
        return
    os.environ[name] = "1"
    try:
        tf.compat.v1.Session(graph=tf.Graph()).close()
    finally:
        del os.environ[name]
    OWN_THREADS.set()


def open_wide(session: Any, signatures: Mapping[str, Signature], calls: Mapping[str, SignatureCall], device: str, label: str,
              owned: contextlib.ExitStack) -> dict[str, Callable]:
    """Calls of a frozen graph that use all cores, by signature; those that answer the same, clearly faster.

    Several requests at once are answered fastest when each has one core; one that is alone would leave the others idle.
    """
    slow = {name: call for name, call in calls.items() if call.kind == "frozen" and call.seconds >= WIDE_SECONDS}
    cores = len(os.sched_getaffinity(0))
    if not slow or cores == 1 or not OWN_THREADS.is_set():
        return {}
    wide, runs = None, dict[str, Callable]()
    try:
        with new_session(device, session_options(cores)) as wide:
            tensorflow().graph_util.import_graph_def(session.graph.as_graph_def(), name="")
        for name, call in slow.items():
            run = make_callable(wide, call.feeds, call.fetches)
            same = all(agrees(one, other) for inputs in samples(signatures[name])
                       for one, other in zip(call.run(*inputs), run(*inputs), strict=True))
            one, other = time_in_turns(call.run, run, sample_inputs(signatures[name], 1))
            gain = one / other
            logger.debug("%s on %d cores: %s answers %s, %.2f times as fast", label, cores, name, "the same" if same else "otherwise", gain)
            if same and gain >= WIDE_GAIN:
                runs[name] = run
    except Exception as error:
        logger.debug("%s is not called on %d cores: %s", label, cores, error)
    if wide and not runs:
        wide.close()
    elif wide:
        owned.callback(LEAVING.add, wide.graph)
        owned.callback(wide.close)
    return runs


def session_options(threads: int | None = None) -> Any:
    """What TensorFlow opens a session with, but for the threads that share an operation, and for a graph that nobody asks for."""
    from tensorflow.python.eager import context
    options = context.context().config
    options.intra_op_parallelism_threads = threads or options.intra_op_parallelism_threads
    options.experimental.disable_output_partition_graphs = True  # it has all constants once more
    return options


def run_alone(workers: Workers, narrow: Callable, wide: Callable, *arrays: np.ndarray) -> Any:
    """A call on all cores while the model has no other to answer, else on one."""
    return workers.run(narrow if workers.open else wide, *arrays)
