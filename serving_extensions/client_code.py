"""Ready client programs in nine languages: each sends a picture file to a deployment and prints the
answer.

The programs are the files of `clients/`; `"@URL@"`, `'@KEY@'` and the like are string literals that
are filled in.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).with_name("clients")
LITERAL = re.compile(r"""(["'])@(URL|KEY|ROUTINES)@\1""")


def quote_backslashed(text: str, quote: str) -> str:
    """A string literal where `\\` and the quote itself are all that needs a backslash."""
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote


def quote_c(text: str, quote: str) -> str:
    """A string literal of C, where `??/` may stand for a backslash."""
    return quote_backslashed(text, quote).replace("?", "\\?")


def quote_shell(text: str, quote: str) -> str:
    """A word of the shell in single quotes, where nothing means anything but the quote."""
    return quote + text.replace(quote, f"{quote}\\{quote}{quote}") + quote


@dataclass(frozen=True)
class Language:
    """A language, or a library of it: the name shown, the program's file, what it needs,
    and how to run it.
    """

    name: str
    template: str
    file_name: str
    needs: str
    run: str
    quote: Callable[[str, str], str] = quote_backslashed
    content_type: str = "text/plain; charset=utf-8"


LANGUAGES: dict[str, Language] = {
    "curl": Language(
        "curl", "curl.sh", "predict.sh", "curl", "sh predict.sh picture.jpg", quote_shell
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
}


def client_code(language: str, url: str, key: str, routines: Sequence[Any]) -> str:
    """A program that sends a picture to `url`, a deployment's /predict, with a key and a request's
    routines.

    Raises ValueError for an unknown language, for a url or key with unprintable characters, and for
    routines that are no JSON.
    """
    if language not in LANGUAGES:
        raise ValueError(f"There is no client for '{language}'; there are: {', '.join(LANGUAGES)}")
    for name, text in (("url", url), ("key", key)):
        if not text.isprintable():
            # neither may hold a line break, nor may the literals that they are put into
            raise ValueError(f"The {name} has characters that cannot be printed")
    # the JSON is printable ASCII
    values = {
        "URL": url,
        "KEY": key,
        "ROUTINES": json.dumps(routines, allow_nan=False),
    }
    quote, template = (
        LANGUAGES[language].quote,
        (TEMPLATES / LANGUAGES[language].template).read_text("utf-8"),
    )
    return LITERAL.sub(lambda literal: quote(values[literal[2]], literal[1]), template)
