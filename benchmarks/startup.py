"""From process start to ready with the demo config, against a bare `import tensorflow` plus
`saved_model.load` of the same models.

    python benchmarks/startup.py [rounds]

The two take turns, so that changes of the machine's speed affect both. Prints medians and the ratio
round by round.
"""

import json
import statistics
import subprocess
import sys
import time
import urllib.request

from load import ROOT

BARE = "import sys, tensorflow as tf\nkept = [tf.saved_model.load(path) for path in sys.argv[1:]]"


def bare(folders):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", BARE, *folders], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def ours():
    start = time.perf_counter()
    command = [sys.executable, ROOT / "serving.py", "--config", ROOT / "config.json", "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    address = process.stdout.readline().split(" on ")[1].split(",")[0]
    while True:
        try:
            urllib.request.urlopen(f"{address}/readyz").read()
            break
        except OSError:
            time.sleep(0.01)
    seconds = time.perf_counter() - start
    process.terminate()
    process.wait()
    return seconds


def main():
    models = [
        item["config"]
        for item in json.loads((ROOT / "config.json").read_text())["model_config_list"]
    ]
    versions = [
        [folder for folder in (ROOT / model["base_path"]).iterdir() if folder.name.isdigit()]
        for model in models
    ]
    folders = [str(max(found, key=lambda folder: int(folder.name))) for found in versions]
    bare(folders), ours()
    pairs = []
    for round_ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        pairs.append((bare(folders), ours()))
        print(
            f"round {round_ + 1}: bare {pairs[-1][0]:.2f} s, serving ready {pairs[-1][1]:.2f} s",
            flush=True,
        )
    bares, ready = zip(*pairs)
    ratios = sorted(b / a for a, b in pairs)
    print(
        f"median: bare {statistics.median(bares):.2f} s, serving {statistics.median(ready):.2f} s, "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
