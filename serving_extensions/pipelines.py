"""Pipelines: directed acyclic graphs of models and Python functions, as OpenVINO Model Server's
configs write them.

    plan(definition, find, functions).run(inputs, call, pool)

A demultiplexer splits its outputs into shards; the nodes after it run once per shard, until a node
gathers the shards. A node's stack is the demultiplexers whose shards it runs for, outermost first.
An index, one number per demultiplexer of the stack, identifies a shard.
"""

import contextlib
import graphlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .core import CARRIED, BadRequest, ServingError, Workers, errors_only

# Where every graph starts and ends; a config cannot use these as node names.
REQUEST, RESPONSE = ("request", "response")

Arrays: TypeAlias = Mapping[str, np.ndarray]
Shape: TypeAlias = tuple[int | None, ...] | None  # None: an unknown size, or an unknown rank
# dtype (DT_FLOAT) and shape; both None if no model specifies them
Tensor: TypeAlias = tuple[str | None, Shape]
Stack: TypeAlias = tuple[str, ...]
Index: TypeAlias = tuple[int, ...]


class PipelineError(ValueError):
    """An invalid graph, or arrays of a request that do not fit it.

    `path` is a JSON path below the pipeline, or empty.
    """

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text)
        self.path = path


class MismatchError(PipelineError):
    """The output of a node does not fit the input it feeds; OpenVINO Model Server answers 400."""


class NodeError(PipelineError):
    """A custom node's function returned something invalid: its own error, not the request's."""


class NoShards(PipelineError):
    """A dynamic demultiplexer got 0 shards, so the pipeline has no answer: not an error of the
    config or the request.
    """


# ==================================================================================================
# Validation
# In: a definition and the models it names. Out: a Graph, or PipelineError with the first wrong
# thing.
# ==================================================================================================


@dataclass(frozen=True)
class Link:
    """Output `item` of `node` feeds input `name` of `target`.

    `given` is the spec of the output, `wanted` that of the input; None if no model specifies it.
    """

    path: str
    target: str
    name: str
    node: str
    item: str
    given: Any
    wanted: Any

    def __str__(self) -> str:
        return f"'{self.name}' of node '{self.target}' from '{self.item}' of node '{self.node}'"


@dataclass(frozen=True)
class Graph:
    listed: tuple[Any, ...]
    nodes: dict[str, Any]
    links: list[Link]
    inputs: dict[str, Any]  # node -> input -> spec; None for a custom node or a missing model
    functions: Mapping[str, Callable]
    items: dict[str, dict[str, str]]  # node -> alias -> output
    counts: dict[str, int]  # demultiplexer -> shards; -1 when the request decides

    def into(self, target: str) -> list[Link]:
        return [link for link in self.links if link.target == target]

    def upstream(self, name: str) -> set[str]:
        """All nodes that a node depends on; includes the node itself if it is in a cycle."""
        found: set[str] = set()
        todo = {name}
        while todo:
            todo = {link.node for link in self.links if link.target in todo} - found
            found |= todo
        return found

    def gathers(self, name: str) -> Stack:
        source = self.nodes[name].gather_from_node if name in self.nodes else None
        return () if source is None else (source,)

    def sizes(self, stack: Stack) -> tuple[int | None, ...]:
        return tuple(self.counts[name] if self.counts[name] > 0 else None for name in stack)


def build_graph(
    definition: Any, find: Callable[[str, int | None], Any], functions: Mapping[str, Callable]
) -> Graph:
    """Build a pipeline's nodes and links, with the specs of the models that are available."""
    nodes = {node.name: node for node in definition.nodes}
    models = {
        name: None if node.type == "custom" else find(node.model_name, node.version)
        for name, node in nodes.items()
    }
    inputs = {name: None if model is None else model.inputs for name, model in models.items()}
    items = {
        name: {output.alias: output.data_item for output in node.outputs}
        for name, node in nodes.items()
    }
    items[REQUEST] = {name: name for name in definition.inputs}
    outputs = {
        (name, alias): model.outputs.get(item)
        for name, model in models.items()
        if model is not None
        for alias, item in items[name].items()
    }
    links = build_links(definition, inputs, outputs)
    counts = {REQUEST: definition.demultiply_count} | {
        name: node.demultiply_count for name, node in nodes.items()
    }
    counts = {name: count or -1 for name, count in counts.items() if count is not None}
    return Graph(definition.nodes, nodes, links, inputs, functions, items, counts)


def build_links(
    definition: Any,
    inputs: Mapping[str, Mapping[str, Any] | None],
    outputs: Mapping[tuple[str, str], Any],
) -> list[Link]:
    """All links: those into the nodes, in the config's order, then those into the response."""
    ends = [
        (f".nodes[{at}].inputs", node.name, node.inputs) for at, node in enumerate(definition.nodes)
    ]
    return [
        Link(
            f"{path}[{at}]",
            target,
            name,
            source.node_name,
            source.data_item,
            outputs.get((source.node_name, source.data_item)),
            (inputs.get(target) or {}).get(name),
        )
        for path, target, ones in [*ends, (".outputs", RESPONSE, definition.outputs)]
        for at, one in enumerate(ones)
        for name, source in one.items()
    ]


# OpenVINO Model Server's checks in its order, with its texts. Each has the node's field to blame
# (None for a check of links), and a function that returns what is wrong, or a false value. Two more
# checks are made in the planning. Unlike there, strings (DT_STRING) may be passed between nodes,
# and an alias names only one output.
CHECKS: tuple[tuple[str, str | None, Callable[[Graph, int, Any], Any]], ...] = (
    (
        "Functionality not implemented",
        ".demultiply_count",
        lambda graph, at, node: (
            node.name in graph.counts
            and len(graph.counts) > 1
            and min(graph.counts.values()) < 0
            and "expected no other demultiplexer beside a dynamic one, "
            f"got {show_names(graph.counts)}"
        ),
    ),
    (
        "Pipeline definition has multiple nodes with the same name",
        ".name",
        lambda graph, at, node: (
            node.name in (REQUEST, RESPONSE, *(other.name for other in graph.listed[:at]))
            and "expected a name of its own"
        ),
    ),
    (
        "Pipeline definition has multiple outputs with the same alias",
        ".outputs",
        lambda graph, at, node: (
            len(aliases := [output.alias for output in node.outputs]) > len(set(aliases))
            and f"expected an alias of its own for each, got {', '.join(map(repr, aliases))}"
        ),
    ),
    (
        "Pipeline definition has reference to missing model",
        ".model_name",
        lambda graph, at, node: (
            node.type != "custom"
            and graph.inputs[node.name] is None
            and f"model '{node.model_name}', version {node.version or 'default'}, is not available"
        ),
    ),
    (
        "Pipeline refers to incorrect library",
        ".library_name",
        lambda graph, at, node: (
            node.type == "custom"
            and node.name not in graph.functions
            and f"no function for library '{node.library_name}': "
            "custom nodes are Python functions here, write 'function': 'module:name'"
        ),
    ),
    (
        "Gather node refers to not existing node",
        ".gather_from_node",
        lambda graph, at, node: (
            node.gather_from_node not in (None, *graph.items)
            and f"expected one of {show_names(graph.items)}, got '{node.gather_from_node}'"
        ),
    ),
    (
        "Gather node refers to node that isn't demultiplexer",
        ".gather_from_node",
        lambda graph, at, node: (
            node.gather_from_node not in (None, *graph.counts)
            and f"node '{node.gather_from_node}' has no demultiply_count"
        ),
    ),
    (
        "Pipeline definition has reference to missing node",
        None,
        lambda graph, at, link: (
            link.node not in (RESPONSE, *graph.items)
            and f"expected one of {show_names(graph.items)}"
        ),
    ),
    (
        "Pipeline definition has response node used as dependency node",
        None,
        lambda graph, at, link: (
            link.node == RESPONSE and f"expected one of {show_names(graph.items)}"
        ),
    ),
    (
        "Pipeline definition has connection to non existing model input",
        None,
        lambda graph, at, link: (
            not link.wanted
            and graph.inputs.get(link.target) is not None
            and f"expected one of {show_names(graph.inputs[link.target])}"
        ),
    ),
    (
        "Pipeline definition has multiple connections to the same input of underlying model",
        None,
        lambda graph, at, link: (
            (link.target, link.name) in [(other.target, other.name) for other in graph.links[:at]]
            and "expected one source"
        ),
    ),
    (
        "Pipeline definition has reference to missing data source",
        None,
        lambda graph, at, link: (
            link.item not in graph.items[link.node]
            and f"expected one of {show_names(graph.items[link.node])}"
        ),
    ),
    (
        "Pipeline definition has reference to missing model output",
        None,
        lambda graph, at, link: (
            not link.given
            and graph.inputs.get(link.node) is not None
            and f"no output '{graph.items[link.node][link.item]}'"
        ),
    ),
    (
        "Pipeline has not enough shape dimensions to demultiply",
        None,
        lambda graph, at, link: (
            link.node in graph.counts
            and link.given
            and link.given.shape is not None
            and len(link.given.shape) < 2
            and f"expected 2 or more, got shape {show_sizes(link.given.shape)}"
        ),
    ),
    (
        "Demultiplication count does not match tensor first dimension",
        None,
        lambda graph, at, link: (
            link.given
            and link.given.shape
            and (count := graph.counts.get(link.node, -1)) > 0
            and link.given.shape[0] not in (None, count)
            and f"expected {count} shards, got shape {show_sizes(link.given.shape)}"
        ),
    ),
    (
        "Invalid input shape",
        None,
        lambda graph, at, link: (
            link.given
            and link.wanted
            and not overlap(
                shape := gathered_shape(graph, link, graph.gathers(link.target)), link.wanted.shape
            )
            and f"expected {show_sizes(link.wanted.shape)}, got {show_sizes(shape)}"
        ),
    ),
    (
        "Invalid input precision",
        None,
        lambda graph, at, link: (
            link.given
            and link.wanted
            and link.given.dtype != link.wanted.dtype
            and f"expected {link.wanted.dtype}, got {link.given.dtype}"
        ),
    ),
    (
        "Pipeline definition does not have connections for all inputs of underlying models",
        ".inputs",
        lambda graph, at, node: (
            (
                unfed := set(graph.inputs[node.name] or ())
                - {link.name for link in graph.into(node.name)}
            )
            and f"nothing feeds {show_names(unfed)}"
        ),
    ),
    (
        "Pipeline definition contains a cycle",
        "",
        lambda graph, at, node: (
            node.name in graph.upstream(node.name) and "it waits for its own outputs"
        ),
    ),
    (
        "Pipeline definition has unconnected nodes",
        "",
        lambda graph, at, node: (
            node.name not in graph.upstream(RESPONSE) and "nothing of it reaches the response"
        ),
    ),
)


MISMATCHES = ("Invalid input shape", "Invalid input precision")


def validate(graph: Graph) -> None:
    for text, field, problem in CHECKS:
        for at, place in enumerate(graph.links if field is None else graph.listed):
            if detail := problem(graph, at, place):
                where = str(place) if field is None else f"node '{place.name}'"
                kind = MismatchError if text in MISMATCHES else PipelineError
                raise kind(
                    f"{text}: {where}: {detail}",
                    place.path if field is None else f".nodes[{at}]{field}",
                )
    if not graph.into(RESPONSE):  # then there are no nodes either: "unconnected" caught them
        raise PipelineError("Pipeline definition has no outputs: expected at least one", ".outputs")


def show_names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "none"


def show_sizes(shape: Shape) -> str:
    return (
        "unknown"
        if shape is None
        else f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
    )


# ==================================================================================================
# Planning
# In: a definition. Out: a Plan: a request's inputs and outputs, and how often each node runs.
# ==================================================================================================


def overlap(one: Shape, other: Shape) -> bool:
    """Whether some array fits both shapes."""
    return (
        one is None
        or other is None
        or (
            len(one) == len(other)
            and all(a is None or b is None or a == b for a, b in zip(one, other))
        )
    )


def gathered_shape(graph: Graph, link: Link, over: Stack) -> Shape:
    """The shape of a link's output as its target gets it, gathered over the stack `over`."""
    shape = link.given.shape
    return None if shape is None else graph.sizes(over) + shape[link.node in graph.counts :]


def stack_around(graph: Graph, name: str, after: Mapping[str, Stack]) -> Stack:
    """The stack of a node: the longest stack among its sources, without the demultiplexer that it
    gathers.

    The output of a source with a shorter stack goes to each shard unchanged; for a gathering node,
    all sources must have the same stack. `after` has the stacks of the sources' outputs.
    """
    links, gathers = graph.into(name), graph.gathers(name)
    innermost = max((after[link.node] for link in links), key=len, default=gathers)
    for link in links:
        stack = after[link.node]
        if (
            (stack != innermost or stack[-1:] != gathers)
            if gathers
            else stack != innermost[: len(stack)]
        ):
            raise PipelineError(
                f"Demultiplexer and gather nodes are not in LIFO order: {link}: expected shards of "
                f"{show_names(gathers or innermost)}, got shards of {show_names(stack)}",
                link.path,
            )
    return innermost[: len(innermost) - len(gathers)]


def plan_inputs(graph: Graph) -> dict[str, Tensor]:
    """A request's inputs: for each, the dtype and shape that fit all models that it feeds."""
    found: dict[str, Tensor] = {name: (None, None) for name in graph.items[REQUEST]}
    for link in graph.links:
        if link.node == REQUEST and link.wanted:
            (dtype, known), shape = found[link.item], link.wanted.shape
            shape = None if shape is None else shape[len(graph.gathers(link.target)) :]
            if dtype not in (None, link.wanted.dtype) or not overlap(known, shape):
                raise PipelineError(
                    "Multiple nodes connected to the same pipeline input require different "
                    f"tensor metadata: {link}: expected {dtype} {show_sizes(known)} as before, "
                    f"got {link.wanted.dtype} {show_sizes(shape)}",
                    link.path,
                )
            both = shape if known is None else known
            if known is not None and shape is not None:
                both = tuple(b if a is None else a for a, b in zip(known, shape))
            found[link.item] = link.wanted.dtype, both
    split = graph.sizes((REQUEST,) if REQUEST in graph.counts else ())
    return {
        name: (dtype, None if shape is None else split + shape)
        for name, (dtype, shape) in found.items()
    }


@dataclass(frozen=True)
class Plan:
    """A valid graph, ready to run; immutable, so requests share it without a lock."""

    graph: Graph
    inputs: dict[str, Tensor]  # of a request
    # of the response; gathered shards add a leading dimension for each demultiplexer
    outputs: dict[str, Tensor]
    around: dict[str, Stack]  # node -> its stack
    after: dict[str, Stack]  # node -> the stack of its outputs: with itself if it demultiplexes
    before: dict[str, set[str]]  # node -> its sources, which must be done first

    def run(
        self,
        inputs: Arrays,
        call: Callable[..., Arrays],
        pool: Workers | None = None,
        seconds: dict[str, float] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> dict[str, np.ndarray]:
        """Answer one request: `call(model_name, version, inputs)` runs a model; idle threads of
        `pool` help. `seconds` gets the seconds spent in each node, summed over its shards.
        `check()` is called before each node and shard; it raises if no more may start.

        Nodes share arrays and views of them, so a node must not write into its inputs. Raises
        NoShards, PipelineError for arrays that do not fit, and the exceptions of nodes and `check`;
        a model's BadRequest gets the node's name in front.
        """
        run = PlanRun(self, call, pool, check, {} if seconds is None else seconds)
        return run.answer(inputs)


def plan(
    definition: Any,
    find: Callable[[str, int | None], Any],
    functions: Mapping[str, Callable] | None = None,
) -> Plan:
    """Check a pipeline and prepare it to run; raises PipelineError.

    `find(model_name, version)` gives an object with `inputs` and `outputs`, or None when there is
    no such model; `functions` has f(inputs, params) for each custom node, by the node's name.
    """
    graph = build_graph(definition, find, functions or {})
    validate(graph)
    before = {
        node.name: {REQUEST, *(link.node for link in graph.into(node.name))}
        for node in graph.listed
    }
    around: dict[str, Stack] = {REQUEST: ()}
    after: dict[str, Stack] = {}
    for name in graphlib.TopologicalSorter({REQUEST: set(), **before}).static_order():
        around[name] = stack_around(graph, name, after)
        after[name] = around[name] + ((name,) if name in graph.counts else ())
    inputs = plan_inputs(graph)
    outputs = {
        link.name: (link.given.dtype, gathered_shape(graph, link, after[link.node]))
        if link.given
        else inputs[link.item]
        if link.node == REQUEST
        else (None, None)
        for link in graph.into(RESPONSE)
    }
    return Plan(graph, inputs, outputs, around, after, before)


# ==================================================================================================
# Running
# In: a Plan and a request's arrays. Out: the response's arrays, or the exception of the first
# failing node.
# ==================================================================================================

MAX_QUEUED = 16  # helper tasks of one request that wait in the pool; a started one submits more


class PlanRun:
    """The run of one request. The caller's thread runs ready nodes until none is left; idle threads
    of the pool help.

    Helpers stop when nothing is ready. Only the caller waits, and only for running nodes, so a busy
    pool slows it down but cannot block it. `changed` guards the counters and queues below.
    """

    def __init__(
        self,
        plan: Plan,
        call: Callable[..., Arrays],
        pool: Workers | None,
        check: Callable[[], None],
        seconds: dict[str, float],
    ) -> None:
        self.plan, self.graph, self.call, self.pool = plan, plan.graph, call, pool
        self.check, self.seconds = check, seconds
        self.values: dict[tuple[str, str], dict[Index, Any]] = {  # arrays and bare numbers
            (link.node, link.item): {} for link in plan.graph.links
        }
        self.counts = {name: count for name, count in plan.graph.counts.items() if count > 0}
        self.left = {REQUEST: 0}  # node that has started -> its shards that are not done
        self.ready: deque[tuple[str, Index]] = deque()
        self.running = self.queued = 0  # nodes that run, helpers that have not started
        self.error: BaseException | None = None
        self.changed = threading.Condition()

    def answer(self, inputs: Arrays) -> dict[str, np.ndarray]:
        self.publish(REQUEST, (), inputs)
        self.start_nodes()
        done = False
        while not done:
            self.work()
            with self.changed:
                self.changed.wait_for(lambda: self.ready or not self.running)
                done = not self.ready  # read under the lock: a helper may take a task after it
        try:
            if self.error is not None:
                raise self.error
            return {link.name: self.read(link, ()) for link in self.graph.into(RESPONSE)}
        finally:
            self.error = None  # its traceback holds this run, and so all arrays

    def work(self, queued: int = 0) -> None:
        """Run ready tasks until there are none; never waits for running ones."""
        with self.changed:
            self.queued -= queued
        while task := self.take():
            start = None
            try:
                self.check()
                start = time.perf_counter()
                self.run_node(*task)
            except BaseException as error:  # raised by `answer`
                self.finish(task[0], start, error)
            else:
                self.finish(task[0], start)

    def take(self) -> tuple[str, Index] | None:
        """Take a ready task, and submit helpers to the pool for the others."""
        with self.changed:
            if not self.ready:
                return None
            self.running += 1
            task = self.ready.popleft()
            while self.pool and self.queued < min(len(self.ready), MAX_QUEUED):
                self.queued += 1
                with contextlib.suppress(ServingError):
                    # no thread can be had, or the pool is closed: the caller goes on alone
                    self.pool.submit(self.work, 1)
            return task

    def finish(self, name: str, start: float | None, error: BaseException | None = None) -> None:
        now = time.perf_counter()
        with self.changed:
            if start is not None:  # None: `check` raised before the node started
                self.seconds[name] = self.seconds.get(name, 0.0) + now - start
            self.running -= 1
            self.left[name] -= 1
            self.error = error if self.error is None else self.error
            if self.error is not None:
                self.ready.clear()
            elif not self.left[name]:
                self.start_nodes()
            self.changed.notify()

    def start_nodes(self) -> None:
        """Make ready all shards of the nodes whose sources are done."""
        for name, before in self.plan.before.items():
            if name not in self.left and all(self.left.get(source) == 0 for source in before):
                tasks = [(name, index) for index in self.indices(self.plan.around[name])]
                self.left[name] = len(tasks)
                self.ready.extend(tasks)

    def indices(self, stack: Stack) -> Iterator[Index]:
        return itertools.product(*(range(self.counts[name]) for name in stack))

    def run_node(self, name: str, index: Index) -> None:
        node = self.graph.nodes[name]
        inputs = {link.name: self.read(link, index) for link in self.graph.into(name)}
        if node.type == "custom":
            with errors_only(f"node '{name}'"):
                outputs = self.graph.functions[name](inputs, dict(node.params))
        else:
            try:
                outputs = self.call(node.model_name, node.version, inputs)
            except BadRequest as error:  # it names a model's input; clients know only the pipeline
                raise BadRequest(f"node '{name}': {error.message}") from error
        self.publish(name, index, outputs)

    def read(self, link: Link, index: Index) -> np.ndarray:
        """The value of a link for its target's shard `index`; demultiplexers that are not in the
        target's stack are gathered, with a leading dimension for each.
        """
        stack, shards = self.plan.after[link.node], self.values[link.node, link.item]
        inner = stack[len(index) :]
        if not inner:
            return as_wanted(shards[index[: len(stack)]], link)
        parts = [as_wanted(shards[index + rest], link) for rest in self.indices(inner)]
        if len(shapes := {part.shape for part in parts}) > 1:
            raise PipelineError(
                f"Gathered tensor shards dimensions are different: '{link.item}' of node "
                f"'{link.node}': "
                f"expected equal shapes, got {', '.join(map(show_sizes, sorted(shapes)))}"
            )
        return np.stack(parts).reshape(*(self.counts[name] for name in inner), *parts[0].shape)

    def publish(self, name: str, index: Index, outputs: Arrays) -> None:
        """Keep the outputs of a node that links read; a demultiplexer's are split into views."""
        for alias, output in self.graph.items[name].items():
            if (shards := self.values.get((name, alias))) is not None:
                array = pick_output(name, output, outputs)
                if name in self.graph.functions:
                    array = as_tensor(array, f"node '{name}'", output)
                if name in self.graph.counts:
                    array = np.asarray(array)
                    shards.update(
                        (index + (shard,), array[shard])
                        for shard in range(self.count_shards(name, output, array))
                    )
                else:
                    shards[index] = array

    def count_shards(self, name: str, output: str, array: np.ndarray) -> int:
        """How many shards a demultiplexer's output has, at least 1.

        The first output of a dynamic demultiplexer sets the count for all its outputs.
        """
        expected = self.counts.setdefault(name, len(array) if array.ndim > 1 else 1)
        place, shape = f"'{output}' of node '{name}'", show_sizes(array.shape)
        wrong = NodeError if name in self.graph.functions else PipelineError
        if array.ndim < 2:
            raise wrong(
                f"Wrong number of dimensions in a tensor to be sharded: {place}: expected 2 or "
                f"more, got shape {shape}"
            )
        if len(array) != expected:
            raise wrong(
                f"Wrong dimension size. Should match demultiply count: {place}: "
                f"expected {expected}, got {len(array)} (shape {shape})"
            )
        if not expected:
            raise NoShards(
                f"Pipeline execution aborted due to no content from custom node: {place}: got "
                f"shape {shape}"
            )
        return expected


PYTHON_NUMBERS = (bool, int, float)  # bare Python numbers, which have no dtype yet
PYTHON_KINDS = {
    bool: "b",
    int: "iufV",
    float: "fV",
}  # the kinds of dtype that each can be converted to; V: bfloat16
TEXTS = (bytes, str)


def pick_output(name: str, output: str, outputs: Any) -> Any:
    """One of the outputs that a node returned, an array or a bare number; NodeError for anything
    else. A NumPy scalar or a text becomes an array of shape [].
    """
    value = outputs.get(output) if isinstance(outputs, Mapping) else None
    if type(value) in PYTHON_NUMBERS:
        return value
    if isinstance(value, (np.generic, *PYTHON_NUMBERS, *TEXTS)):
        value = scalar_array(value)
    if not isinstance(value, np.ndarray):
        got = type(outputs).__name__
        if isinstance(outputs, Mapping):
            got = str({key: type(one).__name__ for key, one in outputs.items()})
        raise NodeError(f"node '{name}': expected a dict with array '{output}', got {got[:500]}")
    return value


def scalar_array(value: Any) -> np.ndarray:
    """A scalar as an array of shape []; text as bytes in an object array, as elsewhere."""
    if isinstance(value, str):
        value = value.encode("utf-8", "replace")
    return np.array(value, object) if isinstance(value, bytes) else np.asarray(value)


def can_be_tensor(value: Any) -> bool:
    """Whether a value can be a tensor: a bare number, or an array of a known dtype or of texts."""
    if not isinstance(value, np.ndarray):
        return True
    if value.dtype.kind == "O":
        return all(isinstance(one, TEXTS) for one in value.flat)
    return value.dtype.kind in "SU" or value.dtype.newbyteorder("=") in CARRIED.values()


def as_tensor(value: Any, node: str, output: str) -> Any:
    """A function's output in the form of a model's: texts as bytes in an object array, numbers in
    native byte order. Raises NodeError for a value that cannot be a tensor.
    """
    if not can_be_tensor(value):
        name = value.dtype.name
        raise NodeError(f"{node}: expected numbers or texts in array '{output}', got {name}")
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind not in "SUO":
        return value.astype(value.dtype.newbyteorder("="), copy=False)
    found = np.empty(value.size, object)
    texts = value.astype(object).flat
    found[:] = [one.encode(errors="replace") if isinstance(one, str) else one for one in texts]
    return found.reshape(value.shape)


def as_wanted(value: Any, link: Link) -> np.ndarray:
    """A node's output as the link's target takes it: a bare number gets the dtype of the input.

    Raises NodeError for a number that does not fit the dtype, and for a function's array of another
    dtype.
    """
    dtype = CARRIED.get(link.wanted.dtype) if link.wanted else None
    if isinstance(value, np.ndarray):
        # `validate` has compared a model's output; a model checks the request's inputs itself.
        is_checked = dtype is None or link.given or link.node == REQUEST
        if not is_checked and value.dtype != dtype:
            raise tell_misfit(link, f"an array of {value.dtype.name}")
        return value
    if dtype is None:
        return bare_array(value, link)
    if dtype.kind not in PYTHON_KINDS[type(value)] or not holds_number(value, dtype):
        raise tell_misfit(link, show_number(value))
    return np.array(value if dtype.kind in "iub" else float(value)).astype(dtype)


def show_number(value: Any) -> str:
    """A bare number for an error text; Python refuses to print integers of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return f"{type(value).__name__} {value}"


def bare_array(value: Any, link: Link) -> np.ndarray:
    """A bare number with NumPy's default dtype, for a target that takes any dtype."""
    array = np.asarray(value)
    if array.dtype.kind == "O":  # the integer is too large for any dtype
        raise NodeError(
            f"node '{link.node}': expected at most 64 bits in '{link.item}', "
            f"got an integer of {value.bit_length()} bits"
        )
    return array


def holds_number(value: Any, dtype: np.dtype) -> bool:
    """Whether a bare number fits a dtype: in range for an integer, not overflowing for a float."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return limits.min <= value <= limits.max
    if dtype.kind == "b":
        return True
    try:
        number = np.float64(value)
    except OverflowError:  # an integer larger than any float
        return False
    with np.errstate(over="ignore"):
        return bool(np.isfinite(number.astype(dtype)) or not np.isfinite(number))


def tell_misfit(link: Link, came: str) -> NodeError:
    wanted = link.wanted.dtype.removeprefix("DT_").lower()
    return NodeError(f"node '{link.node}': {link}: expected {wanted}, got {came}")
