"""Ready client programs in twelve languages: each makes one call of this server and prints the
answer; the one for curl is a single line.

The programs are the files of `clients/`: `python.py` sends a picture file to a deployment,
`call_python.py` makes any other call. String literals such as `"@URL@"` and `'Bearer @KEY@'` are
filled in; a line whose value the call lacks is left out.
"""

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from .core import (
    WHICH,
    BadRequest,
    Call,
    ConfigError,
    Extension,
    Found,
    ModelServer,
    NotFound,
    Reply,
    ServingError,
    Signature,
    find_deployment,
    find_known,
    list_reached,
    needs_key,
    option,
    parse,
    parse_json,
    read_body,
    read_chain,
    read_query_routines,
    route,
    url_of,
    view_infer,
    view_predict_image,
)
from .kserve import describe_tensor, view_infer_v2
from .openapi import (
    example_of,
    example_request,
    find_default,
    named_body,
    placeholders_of,
    sizes_of,
    sizes_to_fill,
)

TEMPLATES = Path(__file__).with_name("clients")
LITERAL = re.compile(r"""(["'])([^"'@\n]*)@(URL|METHOD|KEY|TYPE|BODY|TEXT|ROUTINES)@\1""")
# A shell takes some 64 KB as one argument, and Java as one literal.
LONGEST_BODY = 60_000


def quote_backslashed(text: str, mark: str) -> str:
    """A string literal where only `\\` and the quote itself need a backslash."""
    return mark + text.replace("\\", "\\\\").replace(mark, "\\" + mark) + mark


def quote_c(text: str, mark: str) -> str:
    """A string literal of C, where the trigraph `??/` is a backslash."""
    return quote_backslashed(text, mark).replace("?", "\\?")


def quote_shell(text: str, mark: str) -> str:
    """A word of the shell, in single quotes if needed."""
    return shlex.quote(text)


@dataclass(frozen=True)
class Language:
    """A language, or a library of it: the name shown, the template, the program's file, what it
    needs, and how to run it. `picture.jpg` is the picture to send, if there is one.
    """

    name: str
    template: str
    file_name: str
    needs: str
    run: str
    quote: Callable[[str, str], str] = quote_backslashed
    one_line: bool = False  # joins the template's continued lines


LANGUAGES: dict[str, Language] = {
    "curl": Language(
        "curl",
        "curl.sh",
        "predict.sh",
        "curl 7.76 or later",
        "sh predict.sh",  # and picture.jpg in this folder
        quote_shell,
        one_line=True,
    ),
    "python": Language(
        "Python (requests)",
        "python.py",
        "predict.py",
        "pip install requests",
        "python predict.py picture.jpg",
    ),
    "javascript": Language(
        "JavaScript (fetch)",
        "javascript.js",
        "predict.mjs",
        "Node.js 18 or later",
        "node predict.mjs picture.jpg",
    ),
    "axios": Language(
        "JavaScript (axios)",
        "axios.js",
        "predict.mjs",
        "npm install axios",
        "node predict.mjs picture.jpg",
    ),
    "typescript": Language(
        "TypeScript",
        "typescript.ts",
        "predict.mts",
        "npm install typescript @types/node",
        "npx tsc --strict --skipLibCheck --module nodenext --types node predict.mts && "
        "node predict.mjs picture.jpg",
    ),
    "java": Language(
        "Java", "java.java", "Predict.java", "JDK 11 or later", "java Predict.java picture.jpg"
    ),
    "go": Language(
        "Go", "go.go", "predict.go", "Go 1.18 or later", "go run predict.go picture.jpg"
    ),
    "r": Language(
        "R (httr)", "r.R", "predict.R", 'install.packages("httr")', "Rscript predict.R picture.jpg"
    ),
    "ruby": Language(
        "Ruby", "ruby.rb", "predict.rb", "Ruby 2.5 or later", "ruby predict.rb picture.jpg"
    ),
    "c": Language(
        "C (libcurl)",
        "c.c",
        "predict.c",
        "libcurl and its headers",
        "cc predict.c -o predict -lcurl && ./predict picture.jpg",
        quote_c,
    ),
    "csharp": Language(
        "C#",
        "csharp.cs",
        "predict.cs",
        "Mono 6 (mono-mcs, libmono-system-net-http4.0-cil), or .NET",
        "mcs -r:System.Net.Http.dll predict.cs && mono predict.exe picture.jpg",
    ),
    "php": Language(
        "PHP", "php.php", "predict.php", "PHP 7.4 or later", "php predict.php picture.jpg"
    ),
}


def client_code(language: str, url: str, key: str, routines: Sequence[Any]) -> str:
    """A program that sends a picture to `url`, a deployment's /predict, with a key and a request's
    routines.

    Raises ValueError for an unknown language, for a url or key with unprintable characters, and for
    routines that are no JSON.
    """
    chain = json.dumps(routines, allow_nan=False)
    lone = language in LANGUAGES and LANGUAGES[language].one_line
    values = {"URL": url, "KEY": key, "ROUTINES": chain if routines or not lone else None}
    return fill_template(language, "", values)


def call_code(language: str, method: str, url: str, key: str | None, body: Any = None) -> str:
    """A program that makes a call with a JSON `body`, or with none, and with or without a key.

    Raises ValueError as `client_code` does, and for a body that is too long.
    """
    text = None if body is None else json.dumps(body, allow_nan=False)
    if text is not None and len(text) > LONGEST_BODY:
        raise ValueError(
            f"body: expected at most {LONGEST_BODY} characters for a program, got {len(text)}"
        )
    values = {
        "METHOD": method,
        "URL": url,
        "KEY": key,
        "TYPE": None if text is None else "application/json",
        "BODY": text,
        "TEXT": text or "",
    }
    return fill_template(language, "call_", values)


def fill_template(language: str, kind: str, values: Mapping[str, str | None]) -> str:
    """A template of a language with its literals filled in, without the lines that lack a value."""
    if language not in LANGUAGES:
        raise ValueError(f"There is no client for '{language}'; there are: {', '.join(LANGUAGES)}")
    for name, text in values.items():
        if text is not None and not text.isprintable():
            # neither values nor the literals around them may hold a line break; JSON text is
            # printable ASCII
            raise ValueError(f"The {name.lower()} has characters that cannot be printed")
    known = LANGUAGES[language]
    lines = (TEMPLATES / f"{kind}{known.template}").read_text("utf-8").splitlines(keepends=True)
    kept = []
    for line in lines:
        named = [match[3] for match in LITERAL.finditer(line)]
        if all(values[name] is not None for name in named):
            kept.append(
                LITERAL.sub(lambda it: known.quote(it[2] + str(values[it[3]]), it[1]), line)
            )
    if known.one_line:
        kept = [line.removesuffix("\\\n").lstrip() for line in kept]
    return "".join(kept)


# --- at their URLs --------------------------------------------------------------------------------


def view_client(server: ModelServer, call: Call, deployment: str, language: str) -> Reply:
    """A program that sends a picture to a deployment, with `YOUR_KEY` to fill in."""
    path = url_of(view_predict_image, deployment=deployment)
    return tell_code(server, aim(call, "POST", path), language)


def view_model_client(
    server: ModelServer, call: Call, model: str, language: str, **which: Any
) -> Reply:
    """A program that asks a model or pipeline for its predictions."""
    names: dict[str, Any] = {name: str(one) for name, one in which.items()}  # version or label
    path = url_of(view_infer, model=model, verb="predict", **names)
    return tell_code(server, aim(call, "POST", path), language)


@dataclass(frozen=True)
class WantedCall:
    """A call that a program is to make."""

    path: str = option(doc="a path of this server's, such as /v1/models/m:predict", pattern="^/")
    method: str | None = option(None, "POST if the path takes it", pattern="^[A-Z]+$")
    body: Any = option(None, "the JSON body; default: an example that works")
    key: str = option("YOUR_KEY", "the key in the program, if the call needs one")


def view_call_client(server: ModelServer, call: Call, language: str) -> Reply:
    """A program for any call, described by the URL's `?path=...&method=...` or a JSON body."""
    if call.method == "POST":
        given = parse_json(read_body(server, call))
    else:
        given = {name: values[0] for name, values in call.arguments.items()}
    try:
        wanted = parse(WantedCall, given)
    except ConfigError as error:
        raise BadRequest(str(error)) from None
    path, _, query = wanted.path.partition("?")
    method = wanted.method or choose_method(server, path)
    return tell_code(server, aim(call, method, path, query), language, wanted.body, wanted.key)


def choose_method(server: ModelServer, path: str) -> str:
    """The method for a path: a handler's first one, else POST if it is known, else GET."""
    found = find_known(server, "POST", path)
    if found is not None and "endpoint" in found.arguments:
        return found.arguments["endpoint"].methods[0]
    return "POST" if found is not None else "GET"


def aim(call: Call, method: str, path: str, query: str | None = None) -> Call:
    """The call that a program will make, at the address that this one used."""
    own = call.environ.get("QUERY_STRING", "")
    if query is not None:  # as in WSGI
        own = query.encode("utf-8", "surrogateescape").decode("latin-1")
    environ = {"REQUEST_METHOD": method, "QUERY_STRING": own}
    asked = Call({**call.environ, **environ}, quote(path, safe=SAFE), call.prefix)
    asked.caller = call.caller
    return asked


# Kept in a path, which may be quoted already; but curl expands brackets and braces.
SAFE = "%/:@!$&'()*+,;=~"


def tell_code(
    server: ModelServer, asked: Call, language: str, body: Any = None, key: str = "YOUR_KEY"
) -> Reply:
    """The program for a call; raises NotFound, BadRequest, and ServingError 403 for a call that
    the caller's key is not for.
    """
    found = find_known(server, asked.method, asked.path)
    if found is None:
        raise NotFound(f"This server has no {asked.method} {asked.path[:200]}")
    refuse_unseen(server, asked, found)
    pairs = [(name, one) for name, many in asked.arguments.items() for one in many]
    try:
        if found.route.view is view_predict_image or found.route.name == "preview":
            pairs = [(name, one) for name, one in pairs if name != "routines"]
            chain = read_query_routines(asked)
            read_chain(chain, server.prepared.routines)
            find_deployment(server, found.arguments.get("deployment"))
            code = client_code(language, address_of(asked, pairs), key, chain)
        else:
            body = body_to_show(server, found, asked.method) if body is None else body
            asks = found.route.guard != "open" and needs_key(server, found.route)
            needed = key if asks else None
            code = call_code(language, asked.method, address_of(asked, pairs), needed, body)
    except (ValueError, ConfigError) as error:
        raise BadRequest(str(error)) from None
    return Reply(code.encode(), content_type="text/plain; charset=utf-8")


def address_of(asked: Call, pairs: list[tuple[str, str]]) -> str:
    query = urlencode(pairs, errors="surrogateescape")
    return f"{asked.url}{asked.path}{'?' if query else ''}{query}"


def refuse_unseen(server: ModelServer, asked: Call, found: Found) -> None:
    """Raise ServingError 403 if the caller's key is not for what a call reaches."""
    caller, reached = asked.caller, list_reached(server, found)
    if found.route.guard != "open" and reached is not None and not caller.may_see(*reached):
        own = ", ".join(sorted(caller.deployments or ())) or "nothing"
        raise ServingError(f"The key '{caller.name}' is only for: {own}", "PERMISSION_DENIED")


def body_to_show(server: ModelServer, found: Found, method: str) -> Any:
    """A body that works for a call, or one with `YOUR_INPUT` to replace; None for no body."""
    if found.route.view is view_infer:
        return example_of_model(server, **found.arguments)
    if found.route.view is view_infer_v2:
        return example_of_tensors(server, **found.arguments)
    return "YOUR_INPUT" if "endpoint" in found.arguments and method != "GET" else None


def example_of_model(
    server: ModelServer, model: str, verb: str, version: int | None = None, label: str | None = None
) -> dict[str, Any]:
    """As `body_to_show`, for a model; raises what a call of the model would."""
    _, servable = server.start().manager.find(model, version, label)
    if verb != "predict":
        return {"examples": ["YOUR_INPUT"]}
    if (example := example_of(servable)) is not None:
        return example
    name, signature = find_default(servable) or ("serving_default", Signature({}, {}))
    return named_body(name, placeholders_of(signature))


def example_of_tensors(
    server: ModelServer, model: str, version: int | None = None
) -> dict[str, Any]:
    """As `example_of_model`, for an inference request of KServe V2."""
    _, servable = server.start().manager.find(model, version, None)
    name, signature = find_default(servable) or ("serving_default", Signature({}, {}))
    inputs, example = signature.inputs, example_request(signature)
    body: dict[str, Any] = {
        "inputs": [
            describe_tensor(spec)
            | {
                "shape": [size or 1 for size in sizes_of(spec)],
                "data": ["YOUR_INPUT"] * math.prod(sizes_to_fill(spec)),
            }
            for spec in inputs.values()
        ]
    }
    if example is not None:
        values = example["inputs"]
        for tensor in body["inputs"]:
            array = values[tensor["name"]] if len(inputs) > 1 else values
            tensor |= {"shape": [*array.shape], "data": array.ravel().tolist()}
    if name != "serving_default":
        body["parameters"] = {"signature_name": name}
    return body


EXTENSION = Extension(
    "client_code",
    routes=(
        route(
            "GET POST",
            "/v1/client/{language}",
            view_call_client,
            "shared",
            "A program for any call",
            lists=True,
        ),
        route(
            "GET",
            "/{deployment}/client/{language}",
            view_client,
            "key",
            "A program that sends it pictures",
            lists=True,
        ),
        route(
            "GET",
            "/v1/models/{model}" + WHICH + "/client/{language}",
            view_model_client,
            "shared",
            "A program that calls it",
            lists=True,
        ),
    ),
)
