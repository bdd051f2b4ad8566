"""Does what a page of the documents says, as somebody who types it: `Reader(page, folder).follow()`.

| a block of | is |
|---|---|
| any language, with `title="name"` | written into that file |
| `python` | run, after the blocks before it; `serving.run` serves what the next commands ask |
| `json` | read |
| `console` | its lines after `$ ` are run in bash, and what stands below them must come out |
| any language, after `<!-- from FILE -->` | looked for in that file: its lines, in their order |
| any language, after `<!-- not run: why -->` | left alone |

Any other block is an error. Numbers with a point may differ, `...` stands for anything. Servers run
in this process, which has TensorFlow already; so do sites (`python -m flask --app`). gunicorn has one
of its own.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest import mock

import pytest
from conftest import ROOT, free_port, listening, listening_app

import routines
import serving

FENCE = re.compile(
    r"^(?:<!-- (?:not run: (?P<why>[^\n]+)|from (?P<source>\S+)) -->\n\n?)?"
    r"(?P<indent> *)```(?P<language>\w*)"
    r"(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
DECIMAL = re.compile(r"-?\d+(\.\d+(e[+-]?\d+)?|e[+-]?\d+)")
SITE = re.compile(r"python -m flask --app (\S+) run\b")
GUNICORN = re.compile(r"\bgunicorn(?= -c )")
SERVER = re.compile(r"(python -m serving|python serving\.py|serving)\b")
RUN = serving.run
CLONE = ("models", "examples", "deploy", "config.json", "config.schema.json", "serving.py")
OTHER = re.compile(r" --(check|new-key|init|init-hub|export|version|help)\b")


@dataclasses.dataclass(frozen=True)
class Block:
    line: int
    language: str
    title: str | None
    text: str
    why: str | None  # it is not run
    source: str | None  # the file whose lines it shows


def pages():
    """The pages that people read, by their names below the repository."""
    names = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md")
    files = [*(ROOT / name for name in names), *(ROOT / "docs").rglob("*.md")]
    return sorted(str(file.relative_to(ROOT)) for file in files)


def given(page):
    """What lies in a reader's folder: what the tutorials' first line copies, else the clone."""
    first = ROOT / "docs/tutorials/index.md"
    if (ROOT / page).parent != first.parent or ROOT / page == first:
        return CLONE
    return re.search(r"cp -r (.+) try\b", first.read_text())[1].split()


def blocks(page):
    """The code blocks of a page, in their order."""
    source = (ROOT / page).read_text()
    for found in FENCE.finditer(source):
        line = source[: found.start("text")].count("\n")
        text = textwrap.dedent(found["text"])
        yield Block(line, found["language"], found["title"], text, found["why"], found["source"])


def pattern_of(printed):
    """What the output has to match: numbers with a point may be others, `...` is anything."""
    parts = re.split(r"\s*\.\.\.\s*", DECIMAL.sub("0.0", printed.strip()))
    return re.compile(".*".join(map(re.escape, parts)), re.DOTALL)


def assert_printed(expected, printed, where):
    came = DECIMAL.sub("0.0", printed.strip())
    assert pattern_of(expected).fullmatch(came), f"{where}: expected\n{expected}\ngot\n{printed}"


def assert_shown(shown, source, where):
    """Whether a file has the lines of a block, in their order, however far they are indented."""
    lines = iter([line.strip() for line in source.splitlines()])
    for line in filter(None, map(str.strip, shown.splitlines())):
        assert line in lines, f"{where}: {line} is not in the file, or stands elsewhere"


class Reader:
    """Follows a page, in a folder that holds what it takes for granted."""

    def __init__(self, page, folder, address, key):
        """The server at `address` answers as long as the page has started none of its own."""
        self.page, self.folder, self.address, self.key = page, Path(folder), address, key
        self.names = {"__name__": "__main__"}
        self.stack = contextlib.ExitStack()
        for source in map(ROOT.joinpath, given(page)):
            files = [source]
            if source.is_dir():
                (self.folder / source.name).mkdir()
                files = source.iterdir()
            for file in files:
                (self.folder / file.relative_to(ROOT)).symlink_to(file)

    def follow(self):
        """Run the blocks of the page; AssertionError names the line that does not hold."""
        modules = set(sys.modules)
        with (
            self.stack,
            working_in(self.folder),
            mock.patch.object(sys, "path", [str(self.folder), *sys.path]),
            mock.patch.object(serving, "run", self.run),
            # what a page declares is its own
            mock.patch.dict(routines.FAMILIES),
            mock.patch.dict(routines.DECLARED),
        ):
            for block in blocks(self.page):
                if not block.why:
                    self.do(block, f"{self.page}:{block.line}")
        for name in set(sys.modules) - modules:
            if str(self.folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]

    def do(self, block, where):
        if block.source:
            assert_shown(block.text, (ROOT / block.source).read_text(), where)
        elif block.title:
            self.write(block)
        elif block.language == "python":
            self.execute(block.text, where)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "console":
            for command, printed in commands(block.text):
                self.type(command, printed, where)
        else:
            raise AssertionError(f"{where}: is not run; `<!-- not run: why -->` says why")

    def execute(self, text, where):
        try:
            exec(compile(text, where, "exec"), self.names)
        except ModuleNotFoundError as error:  # of the extra `test`, which somebody may not have
            if os.environ.get("CI") or error.name != "tritonclient":
                raise
            pytest.skip(f"{error.name} is not installed")

    def write(self, block):
        file = self.folder / block.title
        file.unlink(missing_ok=True)  # a link into the clone
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text)

    def type(self, command, printed, where):
        if SERVER.match(command) and not OTHER.search(command):
            words = shlex.split(SERVER.sub("", command, count=1).removesuffix("&"))
            parser = serving.build_parser(serving.installed())
            self.run(serving.choose_source(parser, parser.parse_args(words)))
        elif site := SITE.match(command):
            self.host(runpy.run_path(os.path.abspath(f"{site[1]}.py"))["app"])
        elif GUNICORN.search(command):
            self.start(command, where)
        elif script := re.fullmatch(r"python (\S+\.py)", command):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                runpy.run_path(script[1], run_name="__main__")
            if printed:
                assert_printed(printed, out.getvalue(), where)
        else:
            self.shell(command, printed, where)

    def shell(self, command, printed, where):
        command = re.sub(r"(http://)?(localhost|127\.0\.0\.1):8501", self.address, command)
        command = re.sub(r"\bpython\b", shlex.quote(sys.executable), command)
        command = re.sub(r"\bcurl\b(?! -s)", "curl -s", command)
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            ["bash", "-c", command],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "KEY": self.key, "PYTHONPATH": paths},
        )
        assert done.returncode == 0, f"{where}: {command}\n{done.stdout}{done.stderr}"
        if printed:
            assert_printed(
                printed, done.stdout.replace(self.address, "http://127.0.0.1:8501"), where
            )

    def run(self, source, **options):
        """`serving.run`, which returns: the server answers what the page asks from here on."""
        server = source if isinstance(source, serving.ModelServer) else serving.ModelServer(source)
        self.stack.close()
        with mock.patch.object(serving, "run", RUN):
            self.address = self.stack.enter_context(listening(server))
        assert server.wait(120)
        assert not server.readiness(), server.readiness()
        self.key = server.generated_key or ""

    def start(self, command, where):
        """gunicorn, as typed but for its address, answers what the page asks from here on."""
        self.stack.close()
        bind = f"127.0.0.1:{free_port()}"
        command = GUNICORN.sub(f"exec {shlex.quote(sys.executable)} -m gunicorn", command)
        environ = {**os.environ, "SERVING_BIND": bind}
        process = self.stack.enter_context(subprocess.Popen(["bash", "-c", command], env=environ))
        self.stack.callback(process.terminate)
        self.address = f"http://{bind}"
        retry = "--retry 60 --retry-delay 1 --retry-connrefused"  # until the models are there
        self.shell(f"curl {retry} {self.address}/livez", "", where)

    def host(self, app):
        """`flask run`: a site that has mounted servers answers what the page asks from here on."""
        self.stack.close()
        self.address = self.stack.enter_context(listening_app(app))
        for server in app.extensions["serving"].values():
            self.stack.callback(server.stop)
            assert server.wait(120) and not server.readiness()


@contextlib.contextmanager
def working_in(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def commands(text):
    """The commands of a console, each with what it printed; `> ` and a backslash continue one."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.split("\n")
        count = 1
        while count < len(lines) and (lines[count - 1].endswith("\\") or lines[count][:2] == "> "):
            count += 1
        command = "\n".join(line.removeprefix("> ") for line in lines[:count])
        yield command.strip(), "\n".join(lines[count:]).strip()
