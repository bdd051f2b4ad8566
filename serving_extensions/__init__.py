"""Optional capabilities, a file each, and the one list of them: each plugs in through `serving.Extension`."""

from serving_extensions import (
    active_learning,
    binary,
    commands,
    connections,
    console,
    endpoints,
    metrics,
    on_demand,
    pipeline_servables,
    quotas,
)

VERSION = "0.1.0"  # of the serving.py that they are for

EXTENSIONS = (
    metrics.EXTENSION,
    on_demand.EXTENSION,
    quotas.EXTENSION,
    active_learning.EXTENSION,
    endpoints.EXTENSION,
    pipeline_servables.EXTENSION,
    binary.EXTENSION,
    console.EXTENSION,
    commands.EXTENSION,
    connections.EXTENSION,
)
