"""`--completion bash` and `--completion zsh`: print a script that completes the command line.

    source <(serving --completion bash)

The script is made from the options, so that nothing is kept in step by hand, and no server runs
at each key.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from .core import OPTIONS, Extension, commands, installed

SHELLS = ("bash", "zsh")
BASH = """\
# bash completion of serving: source <(serving --completion bash)
_serving() {{
    local word=${{COMP_WORDS[COMP_CWORD]}}
    if [[ ${{COMP_WORDS[COMP_CWORD-1]}} == --completion ]]; then
        COMPREPLY=($(compgen -W '{shells}' -- "$word"))
    elif [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W {words} -- "$word"))
    fi
}}
complete -o default -F _serving serving
"""
ZSH = """\
#compdef serving
# zsh completion of serving: source <(serving --completion zsh), after compinit
_serving() {{
    _arguments \\
        {arguments}
}}
compdef _serving serving
"""


def completion(source: Any, shell: str) -> int:
    """Print what makes a shell, bash or zsh, complete this command line."""
    if shell == "zsh":
        print(ZSH.format(arguments=" \\\n        ".join(map(shlex.quote, zsh_arguments()))), end="")
    else:
        words = ["--help", *(name for name, _ in every_option() if name.startswith("-"))]
        print(BASH.format(words=shlex.quote(" ".join(words)), shells=" ".join(SHELLS)), end="")
    return 0


def every_option() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each spelling of each option, extensions' included, with its arguments for argparse."""
    named = [(name, told) for names, told in OPTIONS for name in names]
    yield from named
    for name in commands(installed()):
        if f"--{name}" not in dict(named):
            yield f"--{name}", {"metavar": "VALUE"}


def zsh_arguments() -> Iterator[str]:
    """Each option as zsh's `_arguments` wants it: `--port[port to listen on]:PORT:_files`."""
    yield "--help[show this help message and exit]"
    for name, told in every_option():
        text = re.sub(r" \([^()]*(%\(default\)s)?\)", "", told.get("help", ""))
        text = re.sub(r"([\[\]:])", r"\\\1", text)
        if told.get("action") in ("store_true", "version"):
            yield f"{name}[{text}]"
            continue
        metavar = told.get("metavar", name.strip("-").upper())
        values = (metavar,) if isinstance(metavar, str) else metavar
        words = f"({' '.join(told['choices'])})" if "choices" in told else "_files"
        wanted = "".join(f":{value}:{words}" for value in values)
        yield f"{name}[{text}]{wanted}" if name.startswith("-") else f":{metavar}:_files"


EXTENSION = Extension("completion", commands={"completion": completion})
