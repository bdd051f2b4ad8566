"""What the plain loader of serving.py is wrapped in, each by the file of its name."""

import functools
from collections.abc import Callable

from serving import Load, ServerConfig
from serving_rooms import batching, freezing, replicas, warmup
from serving_rooms.residency import Residency

# The innermost first. A frozen graph is another one, so it comes before what is added to a graph;
# the requests that lie beside a model are run as all others will be, joined, and on each replica.
# On demand comes last: all replicas of a model are in memory, or none is.
WRAPPERS = (freezing.wrap, batching.wrap, warmup.wrap, replicas.wrap)


def wrap_load(load: Load, options: Callable[[], ServerConfig]) -> Residency:
    """The loader of a server; `options` are those in force."""
    return Residency(options, functools.reduce(lambda inner, wrap: wrap(inner), WRAPPERS, load))
