"""Optional capabilities, one file each, and the list of them all.

Each plugs in through `serving.Extension`.
"""

from . import (
    active_learning,
    admin,
    admin_uploads,
    batching,
    binary,
    catalogue,
    client_code,
    commands,
    completion,
    connections,
    console,
    deploying,
    doctor,
    endpoints,
    freezing,
    keras_files,
    kserve,
    manifest,
    metrics,
    on_demand,
    pipeline_servables,
    progress,
    quotas,
    replicas,
    tracing,
    warmup,
    wrong_keys,
)

VERSION = "0.2.0"  # of the serving.py that they fit

EXTENSIONS = (
    metrics.EXTENSION,
    # Wrappers of the plain loader, the innermost first. Freezing replaces the graph, so it comes
    # before batching, which adds to the graph. Warm-up requests run as all later ones will: joined,
    # and on each replica. On demand comes last: all replicas of a model are in memory, or none is.
    freezing.EXTENSION,
    batching.EXTENSION,
    warmup.EXTENSION,
    replicas.EXTENSION,
    manifest.EXTENSION,
    on_demand.EXTENSION,
    # Another model format: the wrappers above see the SavedModel exported from it.
    keras_files.EXTENSION,
    quotas.EXTENSION,
    active_learning.EXTENSION,
    endpoints.EXTENSION,
    pipeline_servables.EXTENSION,
    binary.EXTENSION,
    kserve.EXTENSION,
    catalogue.EXTENSION,
    console.EXTENSION,
    admin.EXTENSION,
    admin_uploads.EXTENSION,
    wrong_keys.EXTENSION,
    client_code.EXTENSION,
    tracing.EXTENSION,
    progress.EXTENSION,
    commands.EXTENSION,
    completion.EXTENSION,
    doctor.EXTENSION,
    deploying.EXTENSION,
    connections.EXTENSION,
)
