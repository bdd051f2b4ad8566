"""Optional capabilities, a file each, and the one list of them.

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

VERSION = "0.2.0"  # of the serving.py that they are for

EXTENSIONS = (
    metrics.EXTENSION,
    # What the plain loader is wrapped in, the innermost first. A frozen graph is another one, so it
    # comes before what is added to a graph; the requests that lie beside a model are run as all
    # others will be, joined, and on each replica. On demand comes last: all replicas of a model are
    # in memory, or none is.
    freezing.EXTENSION,
    batching.EXTENSION,
    warmup.EXTENSION,
    replicas.EXTENSION,
    manifest.EXTENSION,
    on_demand.EXTENSION,
    # Another format of model: all others see the SavedModel that it makes of one.
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
