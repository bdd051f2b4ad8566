"""The fuzzer's seeds, and the inputs that have found something, at each run."""

import random

import fuzz
import pytest

import serving

INPUTS = sorted(path for target in fuzz.TARGETS for path in (fuzz.SEEDS / target).iterdir())


@pytest.fixture(autouse=True)
def short_arrays(monkeypatch):
    monkeypatch.setattr(serving, "LARGE", fuzz.LARGE)
    monkeypatch.setattr("routines.fetch_image.__defaults__", (fuzz.nowhere,))


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_each_input_of_the_fuzzer_is_answered_or_refused(path):
    fuzz.try_input(path.parent.name, path.read_bytes())


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_inputs_with_bytes_changed(target):
    chance = random.Random(target)
    seeds = [path.read_bytes() for path in INPUTS if path.parent.name == target]
    for _ in range(3000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(data) + 1)
            data[place : place + chance.choice((0, 1, 1, 4))] = chance.choice(
                (b"", bytes([chance.randrange(256)]), bytes(data[place : place + 8]), b"[", b"\0\0")
            )
        fuzz.try_input(target, bytes(data))


def test_the_fuzzer_ends_at_what_it_looks_for(monkeypatch):
    with pytest.raises(KeyError):
        monkeypatch.setattr(serving, "parse_json", lambda body: {}["not there"])
        fuzz.try_input("tensors", b"\0{}")
    monkeypatch.undo()
    monkeypatch.setattr(serving, "read_large_json", lambda body: {"inputs": [1, 2, 3]})
    with pytest.raises(AssertionError):
        fuzz.try_input("tensors", b'\0{"inputs": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}')
