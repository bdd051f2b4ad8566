"""Concurrent requests joined into batches by TensorFlow's own scheduler, the one TensorFlow Serving uses.

What comes in is a signature as it is called (`plain`) in its session; what goes out is the call to use: batched
where that is right, and wanted or measured to gain, else `plain` itself. Arrays are in the order of the
signature's inputs and outputs.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from serving import CURRENT
from serving_rooms.lane import SHORT_SECONDS

logger = logging.getLogger("serving")

Call = Callable[..., list[np.ndarray]]


def choose_batching(tf: Any, session: Any, signature: Any, plain: Call, seconds: float, device: str, wanted: Any, default: Any,
                    sample: Callable[[int, int], list[np.ndarray]], make_callable: Callable[..., Call], label: str) -> Call:
    """Batch a signature where that is right, and wanted or found to gain: on a GPU always, on a CPU when measured.

    `seconds` is how long `plain` takes for one row; `wanted` is a model's `batching` (true, sizes, or None to find out),
    `default` the sizes where it gives none; `sample(rows, seed)` makes inputs up.
    """
    if not is_batchable(signature):
        if wanted:
            logger.warning("%s runs unbatched: its tensors have no common batch dimension", label)
        return plain
    measured = wanted is None and device.startswith("CPU")
    strings = any(spec.dtype == "DT_STRING" for spec in signature.inputs.values())
    # A short call is answered by the thread that reads sockets, one at a time; one over 50 ms is too long to measure here.
    if measured and (strings or not SHORT_SECONDS < seconds < 0.05 or not gains(plain, sample(4, 0), 4 * seconds)):
        return plain
    independent = None if strings else are_rows_independent(plain, [sample(1, seed) for seed in (1, 2)])  # made-up strings tell nothing
    if independent is False or independent is None and wanted is None:
        if wanted:
            logger.warning("%s runs unbatched: its rows depend on each other", label)
        return plain
    options = wanted if hasattr(wanted, "sizes") else default
    batched = join_batches(tf, plain, make_batched(tf, session, signature, options, device, make_callable), signature, options)
    for size in options.sizes:
        batched(*sample(size, 0))
    if measured and 1.2 * time_calls(batched, sample(1, 0), threads=8, calls=5) > time_calls(plain, sample(1, 0), threads=8, calls=5):
        return plain
    logger.info("%s is batched, up to %d rows", label, options.max_batch_size)
    return batched


def gains(plain: Call, rows: list[np.ndarray], apart: float) -> bool:
    """Whether rows are answered clearly sooner together than `apart` seconds: else the batches, slow to warm up, are not worth a try."""
    try:
        plain(*rows)
        return 1.5 * time_calls(plain, rows, threads=1, calls=1) < apart
    except Exception:  # a graph that takes one row only, in whatever way it says so
        return False


def is_batchable(signature: Any) -> bool:
    """Whether all tensors share a leading unknown dimension and the inputs' other sizes are known."""
    shapes = [spec.shape for spec in (*signature.inputs.values(), *signature.outputs.values())]
    return (all(shape and shape[0] is None for shape in shapes)
            and all(None not in (spec.shape or ())[1:] for spec in signature.inputs.values()))


def are_rows_independent(plain: Call, rows: Sequence[list[np.ndarray]]) -> bool:
    """Whether two rows together answer as they do alone."""
    alone = [plain(*row) for row in rows]
    together = plain(*map(np.concatenate, zip(*rows)))
    return all(two.shape[:1] == (2,) and is_close(two, np.concatenate(ones)) for two, *ones in zip(together, *alone))


def is_close(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal, for floats up to the rounding that differs between batch sizes."""
    if a.dtype.kind not in "fVc":
        return np.array_equal(a, b)
    tolerance = 2e-2 if a.dtype.itemsize <= 2 else 1e-3
    return np.allclose(a.astype(complex), b.astype(complex), rtol=tolerance, atol=tolerance * 1e-2, equal_nan=True)


def time_calls(call: Call, inputs: Sequence[np.ndarray], threads: int, calls: int) -> float:
    """Seconds in which each of some threads has one row answered; the better of two runs of `calls` rows each."""
    def seconds() -> float:
        start = time.perf_counter()
        list(pool.map(lambda _: [call(*inputs) for _ in range(calls)], range(threads)))
        return (time.perf_counter() - start) / calls
    with ThreadPoolExecutor(threads) as pool:
        return min(seconds(), seconds())


def make_batched(tf: Any, session: Any, signature: Any, options: Any, device: str, make_callable: Callable[..., Call]) -> Call:
    """The signature behind TensorFlow's batch scheduler, in the same session; a last output, int32 [rows], is how many ran at once.

    The signature's subgraph becomes the body of a batch function; variables and tables keep their names,
    so the body works on the very ones the session has loaded.
    """
    graph = session.graph
    with graph.as_default(), graph.device(f"/device:{device}"):
        feeds = [graph.get_tensor_by_name(spec.tensor) for spec in signature.inputs.values()]
        fetches = [spec.tensor for spec in signature.outputs.values()]
        body = tf.compat.v1.graph_util.extract_sub_graph(graph.as_graph_def(), [fetch.split(":")[0] for fetch in fetches])

        @tf.nondifferentiable_batch_function(
            options.num_batch_threads, options.max_batch_size, options.batch_timeout_micros, options.sizes,
            options.max_enqueued_batches, autograph=False)
        def batch(*rows: Any) -> list[Any]:
            count = tf.shape(rows[0])[0]
            return [*tf.graph_util.import_graph_def(body, dict(zip((feed.name for feed in feeds), rows)), fetches, name=""),
                    tf.fill([count], count)]

        placeholders = [tf.compat.v1.placeholder(feed.dtype, spec.shape) for feed, spec in zip(feeds, signature.inputs.values())]
        outputs = batch(*placeholders)
    return make_callable(session, [p.name for p in placeholders], [output.name for output in outputs])


def join_batches(tf: Any, plain: Call, batched: Call, signature: Any, options: Any) -> Call:
    """Send what fits a batch through `batched`, all else through `plain`.

    Nothing can join the calls of a thread that answers `alone`. Other shapes than the signature's would fail the strangers in
    the same batch; and when a batch fails, each of its requests runs once more alone, so that only the guilty one gets the error.
    """
    inner = [(spec.shape or ())[1:] for spec in signature.inputs.values()]

    def call(*arrays: np.ndarray) -> list[np.ndarray]:
        rows = len(arrays[0]) if arrays[0].ndim else 0
        fits = 0 < rows <= options.max_batch_size and not getattr(CURRENT, "alone", False)
        if not fits or any(a.shape != (rows, *shape) for a, shape in zip(arrays, inner)):
            return plain(*arrays)
        try:
            *values, counts = batched(*arrays)
            if (trace := getattr(CURRENT, "trace", None)) is not None:
                trace.batch = int(counts[0])
            return values
        except (tf.errors.OpError, UnicodeDecodeError):
            return plain(*arrays)
    return call
