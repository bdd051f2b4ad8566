"""Replicas of a model, on several devices or several on one: the least busy one answers."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from .core import (
    UNTRACED,
    Extension,
    Load,
    LoadError,
    LoadRequest,
    Servable,
    Trace,
    pick_device,
    prepare_devices,
)


def wrap(load: Load) -> Load:
    """A loader that loads a model once for each of its devices and instances."""

    def load_each(request: LoadRequest) -> Servable:
        config, options = request.config, request.options
        prepare_devices(options.gpu_memory_limit_mb, options.intra_op_threads)
        devices = [pick_device(wish) for wish in config.targets for _ in range(config.instances)]
        return load_replicas(
            devices, lambda device: load(dataclasses.replace(request, device=device))
        )

    return load_each


def load_replicas(devices: Sequence[str], load: Callable[[str], Servable]) -> Servable:
    """Load a model once for each entry of `devices`; all of them or none.

    Raises what `load` raises, and LoadError where each would keep something of its own calls.
    """
    replicas: list[Servable] = []
    try:
        for device in devices:
            replicas.append(load(device))
            if len(devices) > 1:
                refuse_state(replicas[0])
    except BaseException:
        close_all(replicas)
        raise
    return replicas[0] if len(replicas) == 1 else Replicas(replicas, devices)


def refuse_state(servable: Servable) -> None:
    for name, call in servable.callables.items():
        if call.keeps:
            raise LoadError(
                f"signature {name} may keep something of a call ({', '.join(call.keeps[:5])}), "
                'which replicas would not share: write "instances": 1, and one target_device'
            )


class Replicas(Servable):
    """Several servables of one model as one; they are its own, and retired with it."""

    def __init__(self, replicas: Sequence[Servable], devices: Sequence[str]):
        first = replicas[0]
        super().__init__(
            first.signatures,
            metadata=first.metadata,
            device=", ".join(devices),
            close=lambda: close_all(replicas),
            calls=first.callables,
        )
        self.folder = first.folder
        self.replicas, self._busy = replicas, [0] * len(replicas)

    def call(
        self, name: str, inputs: dict[str, np.ndarray], trace: Trace = UNTRACED
    ) -> dict[str, np.ndarray]:
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


EXTENSION = Extension("replicas", wrap_load=lambda server, load: wrap(load))
