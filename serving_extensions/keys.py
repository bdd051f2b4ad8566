"""Who may call what: keys by their SHA-256, for a time, for some deployments, so many times.

A key is read from `Authorization: Bearer <key>` or `x-api-key: <key>`; both at once must be the same.
"""

import datetime
import hashlib
import hmac
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Refusal:
    """Why a call is not let in: an HTTP status, a text that never tells a key, and headers."""

    status: int
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)


def unauthorized(text: str, challenge: str = ', error="invalid_token"') -> Refusal:
    return Refusal(401, text, {"WWW-Authenticate": f'Bearer realm="serving"{challenge}'})


def digest(key: str) -> str:
    """What a config stores of a key: its SHA-256 as hexadecimal digits."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def tokens_of(headers: Mapping[str, str]) -> list[str]:
    """The keys that a request's headers hold."""
    scheme, _, bearer = headers.get("Authorization", "").strip().partition(" ")
    tokens = [bearer.strip()] if scheme.lower() == "bearer" else []
    return tokens + ([headers["x-api-key"].strip()] if "x-api-key" in headers else [])


class KeyRing:
    """The keys of one config; replaced as a whole when the config changes.

    `keys` have `name`, `sha256`, `expiry`, `disabled`, `deployments` and `quota`, as in the config;
    `take(name, calls, period)` counts a call and returns the seconds to wait when there are none left.
    """

    def __init__(
        self,
        keys: Sequence[Any],
        take: Callable[[str, int, str], int | None],
        clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(
            datetime.timezone.utc
        ),
    ):
        self._keys = [(bytes.fromhex(key.sha256), key) for key in keys]
        self._take, self._clock = take, clock

    def find(self, token: str) -> Any | None:
        """The key that a token is; every stored digest is compared, each in constant time."""
        given, found = bytes.fromhex(digest(token)), None
        for stored, key in self._keys:
            if hmac.compare_digest(given, stored):
                found = key
        return found

    def check(self, tokens: Collection[str], reached: Collection[str] | None) -> Any:
        """The key of a call that may reach one of some deployments, counted against its quota; or the Refusal.

        With None any key will do, and the call is not counted: it lists what the key is for.
        """
        if not any(tokens):
            return unauthorized(
                "A key is needed: send it as 'Authorization: Bearer <key>' or 'x-api-key: <key>'",
                "",
            )
        if len(set(tokens)) > 1:
            return unauthorized("Authorization and x-api-key hold different keys")
        key = self.find(next(iter(tokens)))
        if key is None:
            return unauthorized("The key is not valid")
        if key.disabled:
            return unauthorized(f"The key '{key.name}' is disabled")
        if key.expiry and self._clock() >= key.expiry:
            return unauthorized(f"The key '{key.name}' has expired")
        if reached is None:
            return key
        if key.deployments is not None and not set(key.deployments) & set(reached):
            return Refusal(
                403, f"The key '{key.name}' is only for: {', '.join(key.deployments) or 'nothing'}"
            )
        return self._count(key) or key

    def _count(self, key: Any) -> Refusal | None:
        if key.quota is None:
            return None
        try:
            seconds = self._take(key.name, key.quota.calls, key.quota.period)
        except OSError as error:  # exactness is what a quota promises: a call that cannot be counted is not let in
            return Refusal(
                503,
                f"The calls of key '{key.name}' cannot be counted just now: {error}",
                {"Retry-After": "5"},
            )
        if seconds is None:
            return None
        return Refusal(
            429,
            f"The key '{key.name}' has used its {key.quota.calls} calls a {key.quota.period}; more in {seconds} s",
            {"Retry-After": str(seconds)},
        )
