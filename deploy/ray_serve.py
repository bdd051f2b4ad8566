"""The server behind Ray Serve's proxies, on all nodes of a Ray cluster. From the folder of
serving.py:

    pip install 'ray[serve]>=2.60' 'a2wsgi>=1.10'
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.ray_serve.proxy_middlewares ray start --head
    serve run deploy.ray_serve:app config=/srv/config.json num_replicas=4 num_gpus=1

Every node needs this folder, the config and the models at the same paths. Arguments (see OPTIONS),
or SERVING_CONFIG, SERVING_NUM_REPLICAS and so on in the environment; `num_replicas=auto
min_replicas=1 max_replicas=8` scales on the requests that a replica is answering.

Each replica polls the config and the version folders every second, as any server does, so that all
of them see changed files without a call. POST /v1/config/reload, which also retries what failed, is
passed on to every replica and answers when the last one is done. `deploy/check_ray.py`
shows all this on three nodes. GPUs and nodes on several machines are untested.
"""

import asyncio
import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import serve

sys.path.insert(0, str(Path(__file__).parent.parent))

import serving  # noqa: E402
from deploy.asgi import create_asgi  # noqa: E402

LOAD_SECONDS = 600  # a replica that takes longer to load is replaced by Ray
RELOAD_SECONDS = 600  # how long a reload waits for the slowest replica
# of each replica: 1 and 0
OPTIONS: dict[str, Callable[[str], Any]] = {
    "config": str,  # the config file: config.json
    "num_replicas": lambda text: text if text == "auto" else int(text),  # 1, or auto
    "min_replicas": int,
    "max_replicas": int,
    "target_ongoing_requests": float,  # of auto; Ray's defaults
    "num_cpus": float,
    "num_gpus": float,
}


class ServerOfMany(serving.ModelServer):
    """A server whose reload goes to all replicas, itself included."""

    def reload(self, timeout: float = RELOAD_SECONDS) -> tuple[int, dict[str, Any]]:
        """Reload every replica, which may take `timeout` seconds.

        Returns the answer with the highest status: of a failure, else of a change. Raises
        ServingError DEADLINE_EXCEEDED if a replica takes longer.
        """
        context = serve.get_replica_context()
        calls = serve.get_deployment_handle(context.deployment, context.app_name).broadcast(
            "reload_alone"
        )
        seconds = max(0, min(timeout, RELOAD_SECONDS))
        try:
            found = calls.results(timeout_s=seconds, return_exceptions=True)
        except TimeoutError as error:  # of asking Ray for the replicas
            found = [error]
        if any(isinstance(answer, TimeoutError) for answer in found):
            late = "A replica takes longer to load than the request's timeout"
            raise serving.ServingError(late, "DEADLINE_EXCEEDED")
        # a replica that ended meanwhile is replaced and reads everything again
        answers = [answer for answer in found if isinstance(answer, tuple)]
        return max(answers, key=lambda answer: answer[0]) if answers else self.reload_alone()

    def reload_alone(self) -> tuple[int, dict[str, Any]]:
        """Reload this process alone."""
        return super().reload()


here: list[ServerOfMany] = []  # the replica's server; each replica is its own process


def build() -> Callable[..., Any]:
    """The ASGI application of this replica, once its server exists.

    It drops X-Request-Id from answers: Ray's proxy adds the same one again.
    """
    app = create_asgi(here[0])

    async def answer(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        given = dict(scope.get("headers", ())).get(b"x-request-id")

        async def pass_on(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    header for header in message["headers"] if header != (b"x-request-id", given)
                ]
            await send(message)

        await app(scope, receive, pass_on)

    return answer


class Replica:
    """One process that serves everything in the config.

    Ray places it on a node with room, and replaces it when it ends.
    """

    def __init__(self, config: str):
        self.server = ServerOfMany(config)
        here[:] = [self.server]
        self.server.wait(LOAD_SECONDS)
        self.was_ready = False

    def check_health(self) -> None:
        """Raise if Ray should replace this replica; Ray asks before the first request and every few
        seconds.

        Before the first request all models must be ready. Later a broken model from a new config is
        no reason to end a replica that serves the others.
        """
        missing = self.server.readiness()
        if missing and not self.was_ready:
            raise RuntimeError(f"Not ready: {', '.join(missing)}")
        self.was_ready = True

    async def reload_alone(self) -> tuple[int, dict[str, Any]]:
        """Reload this replica; called by `ServerOfMany.reload` on each."""
        return await asyncio.to_thread(self.server.reload_alone)


def options_of(
    arguments: Mapping[str, str], environ: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """Read the options from the arguments, else from the environment.

    Raises ValueError for unknown or bad ones.
    """
    for name in arguments:
        if name not in OPTIONS:
            close = difflib.get_close_matches(name, OPTIONS, 1)
            raise ValueError(
                f"{name}: unknown option; "
                + (f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(OPTIONS)}")
            )
    given = {name: arguments.get(name, environ.get(f"SERVING_{name.upper()}")) for name in OPTIONS}
    try:
        return {name: OPTIONS[name](text) for name, text in given.items() if text is not None}
    except ValueError as error:
        raise ValueError(f"an option is no number: {error}") from None


def app(arguments: dict[str, str]) -> serve.Application:
    """The application that `serve run deploy.ray_serve:app` deploys.

    Raises ValueError and ConfigError before anything is deployed.
    """
    options = options_of(arguments)
    path = str(Path(options.get("config", "config.json")).absolute())
    server = serving.load_config(path).server
    scaling = {
        name: options[name]
        for name in ("min_replicas", "max_replicas", "target_ongoing_requests")
        if name in options
    }
    replicas = options.get("num_replicas", 1)
    if scaling and replicas != "auto":
        raise ValueError(f"{', '.join(scaling)}: of num_replicas=auto")
    return serve.deployment(
        serve.ingress(build)(Replica),
        name="serving",
        num_replicas=replicas,
        autoscaling_config=scaling or None,
        # more wait in Ray's proxy, which sends them where a thread is free first
        max_ongoing_requests=server.threads,
        graceful_shutdown_timeout_s=server.drain_seconds,
        health_check_period_s=5,
        ray_actor_options={
            "num_cpus": options.get("num_cpus", 1.0),
            "num_gpus": options.get("num_gpus", 0.0),
        },
    ).bind(path)


# paths of calls that are safe to repeat
REPEATABLE = re.compile(r"[^:]+:(?:predict|classify|regress)|(?:/[^/:]+)?/predict")
KEPT_BYTES = 16 << 20  # of a body; a request with a larger one is not retried
# seconds before each retry; Ray notices a lost node after about one
PAUSES = (0.1, 0.3, 0.6, 1.0, 2.0)


class Retryable:
    """ASGI middleware of Ray's proxies for requests whose replica ends during them, or has ended
    unknown to Ray: Ray has no answer then.

    Model calls and reads are sent to another replica, unnoticed by the client. A handler's call may
    have side effects, so the client must repeat it: it gets 503 with Retry-After. Without this,
    clients get 500, which they take for their own error.
    """

    def __init__(self, app: Callable[..., Any]):
        self.app = app

    async def __call__(
        self, scope: Any, receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, kept = list[str](), Kept(receive)

        async def watch(message: Any) -> None:
            begun.append(message["type"])
            await send(message)

        may_repeat = (
            scope["method"] in ("GET", "HEAD")
            or scope["method"] == "POST"
            and REPEATABLE.fullmatch(scope["path"])
        )
        for pause in (*PAUSES, None) if may_repeat else (None,):
            await self.app(dict(scope), kept.from_the_start(), watch)
            if begun:
                return
            if pause is None or kept.has_left or kept.size > KEPT_BYTES:
                break
            await asyncio.sleep(pause)
        await send(
            {
                "type": "http.response.start",
                "status": 503,
                "headers": [(b"content-type", b"application/json"), (b"retry-after", b"1")],
            }
        )
        await send(
            {
                "type": "http.response.body",
                "body": b'{"error": "The replica of this request has ended: send it again"}',
            }
        )


class Kept:
    """A request's body, kept while it arrives so that it can be read again."""

    def __init__(self, receive: Callable[..., Any]):
        self.receive, self.messages, self.size, self.has_left = receive, list[Any](), 0, False

    def from_the_start(self) -> Callable[..., Any]:
        """A `receive` that replays what has arrived, then goes on receiving."""
        known = iter(list(self.messages))

        async def receive() -> Any:
            message = next(known, None)
            if message is not None:
                return message
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self.has_left = True
                return message
            self.size += len(message.get("body", b""))
            self.messages.append(message)
            if self.size > KEPT_BYTES:
                self.messages.clear()
            return message

        return receive


def proxy_middlewares() -> list[Any]:
    """What RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names.

    Ray's proxies call it when they start.
    """
    from starlette.middleware import Middleware

    return [Middleware(Retryable)]
