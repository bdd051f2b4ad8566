"""Replicas of a model, on several devices or several on one: the least busy one answers."""

import threading
from collections.abc import Callable, Sequence

import numpy as np

from serving import Servable


def load_replicas(devices: Sequence[str], load: Callable[[str], Servable]) -> Servable:
    """Load a model once for each entry of `devices`; all of them or none. Raises what `load` raises."""
    replicas: list[Servable] = []
    try:
        for device in devices:
            replicas.append(load(device))
    except BaseException:
        close_all(replicas)
        raise
    first, busy = replicas[0], [0] * len(replicas)
    lock = threading.Lock()

    def answer(name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with lock:
            chosen = busy.index(min(busy))
            busy[chosen] += 1
        try:
            return replicas[chosen].run(name, inputs)
        finally:
            with lock:
                busy[chosen] -= 1

    return Servable(
        first.signatures,
        answer,
        metadata=first.metadata,
        device=", ".join(devices),
        close=lambda: close_all(replicas),
        calls=first.callables,
    )


def close_all(replicas: Sequence[Servable]) -> None:
    for replica in replicas:
        replica.retire(0)
