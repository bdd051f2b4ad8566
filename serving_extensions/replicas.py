"""Replicas of a model, on several devices or several on one: the least busy one answers."""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .core import (
    UNTRACED,
    BadRequest,
    Extension,
    Load,
    LoadError,
    LoadRequest,
    ModelServer,
    Servable,
    Trace,
    pick_device,
    prepare_devices,
)

logger = logging.getLogger("serving")

# Operations that change a variable or a table for the calls that come after.
WRITES = re.compile(
    "(Resource)?(Assign|Scatter|(Sparse)?Apply|CountUpTo|StridedSliceAssign).*"
    "|LookupTable(Insert|Import|Remove).*"
)


def wrap_load(server: ModelServer, load: Load) -> Load:
    """A loader that loads a model once for each of its devices and instances."""

    def load_each(request: LoadRequest) -> Servable:
        config, options = request.config, request.options
        prepare_devices(options.gpu_memory_limit_mb, options.intra_op_threads)
        devices = [pick_device(wish) for wish in config.targets for _ in range(config.instances)]
        return load_replicas(
            devices, lambda device: load(dataclasses.replace(request, device=device)), config.name
        )

    return load_each


def load_replicas(
    devices: Sequence[str], load: Callable[[str], Servable], label: str = "a model"
) -> Servable:
    """Load a model once for each entry of `devices`; all of them or none.

    `label` is the model's name, for the log. Raises what `load` raises, and LoadError if every
    signature writes state that replicas do not share.
    """
    replicas: list[Servable] = []
    refused: dict[str, str] = {}
    try:
        for device in devices:
            replicas.append(load(device))
            if len(devices) > 1 == len(replicas):
                refused = refuse_state(replicas[0], label)
    except BaseException:
        close_all(replicas)
        raise
    return replicas[0] if len(replicas) == 1 else Replicas(replicas, devices, refused)


def refuse_state(servable: Servable, label: str) -> dict[str, str]:
    """Why some signatures cannot be called, by name: they write what replicas do not share.

    Raises LoadError if none is left.
    """
    refused = {}
    for name, call in servable.callables.items():
        writes, kept = list(filter(WRITES.fullmatch, call.keeps)), ", ".join(call.keeps[:5])
        if writes:
            refused[name] = (
                f"signature {name} cannot be called: replicas would not share what it writes "
                f'({", ".join(writes[:5])}): write "instances": 1, and one target_device'
            )
            logger.warning("%s: %s", label, refused[name])
        elif kept:
            text = "%s: signature %s may keep state between calls (%s): each replica has its own"
            logger.warning(text, label, name, kept)
    if refused and len(refused) == len(servable.callables):
        raise LoadError("; ".join(refused.values()))
    return refused


class Replicas(Servable):
    """Several servables of one model as one, which owns and retires them."""

    def __init__(
        self, replicas: Sequence[Servable], devices: Sequence[str], refused: Mapping[str, str]
    ):
        first = replicas[0]
        self._refused = refused  # why some signatures cannot be called
        super().__init__(
            first.signatures,
            metadata=first.metadata,
            device=", ".join(devices),
            close=lambda: close_all(replicas),
            calls={name: one for name, one in first.callables.items() if name not in refused},
        )
        self.folder = first.folder
        self.replicas, self._busy = replicas, [0] * len(replicas)

    def call(
        self, name: str, inputs: dict[str, np.ndarray], trace: Trace = UNTRACED
    ) -> dict[str, np.ndarray]:
        if name in self._refused:
            raise BadRequest(self._refused[name])
        with self._lock:
            chosen = self._busy.index(min(self._busy))
            self._busy[chosen] += 1
        try:
            return self.replicas[chosen].call(name, inputs, trace)
        finally:
            with self._lock:
                self._busy[chosen] -= 1


def close_all(replicas: Sequence[Servable]) -> None:
    for replica in replicas:
        replica.retire(0)


EXTENSION = Extension("replicas", wrap_load=wrap_load)
