"""Limit wrong keys by client address: beyond a number a minute, the address is answered 429.

No thread waits for that, and memory is bounded.
"""

import ipaddress
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from .core import (
    Call,
    Caller,
    Config,
    Extension,
    Found,
    ModelServer,
    ServingError,
    digest,
    is_counted,
    list_reached,
    tokens_of,
)

DEFAULT = 30  # wrong keys a minute where the config has `admin`
MOST_KNOWN = 10_000  # remembered addresses, and remembered right keys
MINUTE = 60.0


class WrongKeys:
    """Counts of wrong keys by address in the minute since the first; and keys that were right.

    The last wrong key again is no new guess: an open page may repeat a key that was removed.

    Many clients may share an address (a proxy, an office). Keys that were right from there before
    are still let in: only keys new to the address are refused for the rest of the minute.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._lock = clock, threading.Lock()
        # by network: start, count, digest of the last one
        self._wrong: OrderedDict[str, tuple[float, int, str]] = OrderedDict()
        self._right: OrderedDict[tuple[str, str], None] = OrderedDict()

    def seconds_to_wait(self, address: str, token: str, most: int) -> int:
        """Seconds for which a key from an address is not checked; 0 if it is."""
        nothing = 0.0, 0, ""
        since, count, _ = self._wrong.get(network_of(address), nothing) if self._wrong else nothing
        left = since + MINUTE - self._clock()
        if count < most or left <= 0 or (address, digest(token)) in self._right:
            return 0
        return math.ceil(left)

    def note_wrong(self, address: str, token: str) -> None:
        with self._lock:
            network, now, known = network_of(address), self._clock(), digest(token)
            since, count, last = self._wrong.pop(network, (now, 0, ""))
            if now >= since + MINUTE:
                since, count, last = now, 0, ""
            self._wrong[network] = since, count + (known != last), known
            if len(self._wrong) > MOST_KNOWN:
                self._wrong.popitem(last=False)

    def note_right(self, address: str, token: str) -> None:
        known = address, digest(token)
        if known in self._right:
            return
        with self._lock:
            self._right[known] = None
            if len(self._right) > MOST_KNOWN:
                self._right.popitem(last=False)


def client_address(environ: Mapping[str, Any]) -> str:
    """The client's address. In an address from a proxy, waitress takes what follows the last colon
    of `::ffff:192.0.2.1` for a port, and leaves `[2001:db8::1]:443` as it is.
    """
    address = environ.get("REMOTE_ADDR") or ""
    if address == "::ffff":
        return environ.get("REMOTE_PORT", "")
    return re.sub(r"^\[(.*)\]:\d+$", r"\1", address)


def network_of(address: str) -> str:
    """What one client has: an IPv4 address, or an IPv6 network of 64 bits."""
    if ":" not in address:
        return address
    try:
        carried = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if carried.ipv4_mapped:
        return str(carried.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(carried) >> 64 << 64, 64)))


def most_wrong(config: Config) -> int | None:
    """How many wrong keys a minute an address may send; None for no limit."""
    return config.auth.wrong_keys_per_minute or (DEFAULT if config.admin else None)


def identify(server: ModelServer, call: Call, found: Found) -> Caller | None:
    """The caller by the config's keys, as in the core; wrong keys are counted."""
    reached = list_reached(server, found)
    return identify_for(server, call, reached, is_counted(call, found.route))


def identify_for(
    server: ModelServer, call: Call, reached: list[str] | None, counted: bool = True
) -> Caller | None:
    """The caller by a key for one of the deployments `reached` (None: any key). None if the
    request has no key, or wrong keys are not limited. If `counted`, a quota counts the call.
    """
    most = most_wrong(server.config)
    if most is None or not any(tokens := tokens_of(call.headers)):
        return None
    state: WrongKeys = server.state["wrong_keys"]
    address = client_address(call.environ)
    if seconds := state.seconds_to_wait(address, tokens[0], most):
        raise ServingError(
            f"Too many wrong keys came from this address; try again in {seconds} s",
            "RESOURCE_EXHAUSTED",
            headers={"Retry-After": str(seconds)},
        )
    try:
        caller = server.identify(call.headers, reached, counted)
    except ServingError as error:
        if error.status == 401 and is_unknown(server, tokens):
            state.note_wrong(address, tokens[0])
        raise
    state.note_right(address, tokens[0])
    return caller


def is_unknown(server: ModelServer, tokens: list[str]) -> bool:
    """Whether a token is no key at all: an expired key is no guess."""
    ring: Any = server.prepared.keys
    return any(ring.find(token) is None for token in tokens)


EXTENSION = Extension("wrong_keys", open=lambda server: WrongKeys(), identify=identify)
