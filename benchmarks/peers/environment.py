"""A virtual environment for each peer, made once,
which takes TensorFlow and its company from the one that runs the benchmark.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import workloads

from .catalogue import DOORS, PEERS


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment, or of a door's.

    The environment is made at the first call and when its packages change.
    """
    packages = {**PEERS, **DOORS}[peer].packages
    folder = workloads.MADE / "venvs" / peer
    python, done = folder / "bin/python", folder / "packages.txt"
    wanted = "\n".join(packages)
    if not done.exists() or done.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        # Read after the environment's own packages: what a peer needs in another version wins; pip
        # counts the rest as installed.
        shared = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        (site / "benchmark.pth").write_text("".join(f"{path}\n" for path in shared))
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        done.write_text(wanted)
    return python
