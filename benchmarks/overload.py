"""Many times the load that the server can take: accepted requests keep their speed, the others
are refused at once, and nothing is left behind.

    python benchmarks/overload.py [--seconds 300] [--times 10] [--connections 500]
        [--max_queue_seconds 0.05]

Serves models/shapes on /predict with `max_queue_seconds` set, measures it unloaded (one request
after the other), finds the rate it can keep (8 connections), then sends `times` that rate, open,
over `connections`, and asks for the states as an operator would. Prints the answers, latencies from
when each request was due, memory, and the server's speed from the first second after the load.
"""

import argparse
import collections
import json
import multiprocessing
import time

from load import AUTH, KEY, ROOT, Case, Load, Served, item, percentile, spell


def case():
    return Case(
        spell(
            "POST",
            "/shapes/predict",
            (ROOT / "models/shapes/samples/0.jpg").read_bytes(),
            Authorization=f"Bearer {KEY}",
        )
    )


def generate(port, connections, seconds, rate, reference):
    """Seconds by status, and the wrong answers; runs in its own process."""
    only, found, wrong = case(), collections.defaultdict(list), []

    def answered(_, status, body, took):
        found[status].append(took)
        if status == 200 and body != reference:
            wrong.append(body[:200])

    load = Load(port, connections, lambda: only, answered)
    begun = load.run(seconds=seconds, rate=rate)
    load.close()
    return begun, dict(found), wrong


def say(name, seconds):
    cells = [f"{1000 * percentile(seconds, share):.1f}" for share in (0.5, 0.99, 1)]
    print(f"| {name} | {len(seconds)} | {' | '.join(cells)} |", flush=True)


def watch(server, done, seconds):
    """Ask what an operator would meanwhile: the seconds by path,
    and MB of memory every five seconds.
    """
    asked, memory, start = collections.defaultdict(list), [], time.monotonic()
    while not done.ready():
        for path in ("/livez", "/readyz", "/metrics", "/stats"):
            begin = time.perf_counter()
            server.get(path)
            asked[path].append(time.perf_counter() - begin)
        memory.append(server.memory())
        if len(memory) % 6 == 0:
            print(
                f"{time.monotonic() - start:5.0f} s of {seconds}: {memory[-1]:.0f} MB", flush=True
            )
        done.wait(5)
    return asked, memory


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--max_queue_seconds", type=float, default=0.05)
    options = parser.parse_args()
    server = Served(
        {
            "model_config_list": [item("shapes", ROOT / "models/shapes")],
            "deployments": [
                {
                    "id": "shapes",
                    "model": "shapes",
                    "label_map": str(ROOT / "models/shapes/label_map.pbtxt"),
                }
            ],
            "auth": AUTH,
            "server": {
                "max_queue_seconds": options.max_queue_seconds,
                "file_system_poll_wait_seconds": 0,
            },
        }
    )
    print("| | requests | p50, ms | p99, ms | longest, ms |\n|---|---|---|---|---|")
    answers = []
    Load(server.port, 1, case, lambda _, status, body, took: answers.append(body)).run(count=1)
    (reference,) = answers
    assert json.loads(reference)["predictions"]
    with multiprocessing.get_context("spawn").Pool(1) as pool:

        def ask(connections, seconds):
            return pool.apply(generate, (server.port, connections, seconds, None, reference))

        ask(8, 5)
        _, alone, _ = ask(1, 10)
        say("unloaded, one after the other", alone[200])
        _, steady, _ = ask(8, 10)
        rate = len(steady[200]) / 10
        say(f"8 connections, {rate:.0f}/s", steady[200])
        done = pool.apply_async(
            generate,
            (server.port, options.connections, options.seconds, options.times * rate, reference),
        )
        asked, memory = watch(server, done, options.seconds)
        begun, found, wrong = done.get()
        after = [ask(8, 1) for _ in range(5)]
    accepted = found.get(200, [])
    say(
        f"{options.times:g} times as much from {options.connections}: answered, "
        f"{len(accepted) / options.seconds:.0f}/s",
        accepted,
    )
    say("the others, with 503", found.get(503, []))
    for path, seconds in asked.items():
        say(f"`{path}` meanwhile", seconds)
    print(
        "\np99 of what was answered: "
        f"{percentile(accepted, 0.99) / percentile(alone[200], 0.99):.2f} times the unloaded"
    )
    others = {status: len(seconds) for status, seconds in found.items() if status not in (200, 503)}
    print(
        f"other answers: {others or 'none'}; wrong answers: {len(wrong)}; sent "
        f"{begun / options.seconds:.0f}/s"
    )
    print(
        f"memory: {memory[0]:.0f} MB at the start, {memory[len(memory) // 10]:.0f} MB at a "
        f"tenth, {max(memory):.0f} MB at most, "
        f"{memory[-1]:.0f} MB at the end"
    )
    rates = ", ".join(f"{len(found.get(200, [])):.0f}/s" for _, found, _ in after)
    print(
        f"after its end, second by second: {rates} (before: {rate:.0f}/s); ended with status "
        f"{server.stop()}"
    )


if __name__ == "__main__":
    main()
