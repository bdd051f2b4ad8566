"""Progress of the first load: one line on the terminal, redrawn until the load is over.

If stderr is no terminal, only the log tells it.
"""

import contextlib
import itertools
import logging
import os
import sys
import time
from collections.abc import Iterator

from .core import IMPORTED, Extension, ModelServer

FRAMES = "|/-\\"
ERASE = "\r\x1b[K"  # go to the line's start and clear it: ECMA-48
MOST_COLUMNS = 79  # a longer line would wrap, and could not be erased


def show_load(server: ModelServer) -> None:
    """Draw the line until the first load is over."""
    stream = sys.stderr
    if stream is None or not stream.isatty() or os.environ.get("TERM") == "dumb":
        return
    began = time.monotonic()
    with erased_before_lines():
        for frame in itertools.cycle(FRAMES):
            if server.wait(0.1):
                break
            line = f"{frame} {tell_step(server)}, {time.monotonic() - began:.0f} s"
            stream.write(f"{ERASE}{line[:MOST_COLUMNS]}")
            stream.flush()
        stream.write(ERASE)
        stream.flush()


def tell_step(server: ModelServer) -> str:
    """What the loader does now, such as `loading digits, shapes (2 of 4 loaded)`."""
    if "tensorflow" in sys.modules and not IMPORTED:
        return "importing TensorFlow"
    names = [model.name for model in server.config.models]
    left = [name for name in names if name not in server.manager.available]
    return f"loading {', '.join(left)} ({len(names) - len(left)} of {len(names)} loaded)"


@contextlib.contextmanager
def erased_before_lines() -> Iterator[None]:
    """Erase the progress line before each line of the log."""

    def erase(record: logging.LogRecord) -> bool:
        sys.stderr.write(ERASE)
        return True

    handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
    for handler in handlers:
        handler.addFilter(erase)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(erase)


EXTENSION = Extension("progress", show_load=show_load)
