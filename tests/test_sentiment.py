"""The sentiment example: the handler of CellStrat's guide, answering what the guide's client reads."""

import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import serving
from serving_extensions.handlers import Handler
from serving_extensions.results import to_content

EXAMPLE = ROOT / "examples" / "sentiment"
LABELS = {"Positive", "Neutral", "Negative"}
# The sample_inputs of the guide.
SAMPLES = [
    "Deployment with CellStrat Hub is so simple and quick!",
    "I have been using CellStrat Workspace for a while now",
    "I don't like that movie. It tried to do a lot of things at once.",
]


@pytest.fixture(scope="module")
def handler():
    patch = pytest.MonkeyPatch()
    patch.setattr(
        serving,
        "hub_handler",
        getattr(serving, "hub_handler", lambda function: function),
        raising=False,
    )
    config = json.loads((EXAMPLE / "config.json").read_text())["handlers"][0]
    handler = Handler(config["function"], EXAMPLE, config["model_dir"])
    handler.load()
    yield handler
    patch.undo()


@pytest.fixture(scope="module")
def train():
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(EXAMPLE)
    yield importlib.import_module("train")
    patch.undo()
    for name in ("train", "tokens"):
        sys.modules.pop(name)


def best(handler, text):
    return handler.call(text, None)[0][0][0]


def test_a_string_answers_in_the_form_of_the_guide(handler):
    value, kind = to_content(handler.call(SAMPLES[0], None))
    output = json.loads(serving.encode_json(value))
    assert kind == "application/json" and len(output) == 1
    assert {label for label, _ in output[0]} == LABELS
    percents = [percent for _, percent in output[0]]
    assert percents == sorted(percents, reverse=True) and sum(percents) == pytest.approx(
        100, abs=0.02
    )
    assert all(percent == round(percent, 2) for percent in percents)


def test_the_samples_of_the_guide_come_out_as_a_reader_would_say(handler):
    assert [preds[0][0] for preds in handler.call(SAMPLES, None)] == [
        "Positive",
        "Neutral",
        "Negative",
    ]


@pytest.mark.parametrize(
    "text, label",
    [
        ("I love it", "Positive"),
        ("I hate it", "Negative"),
        ("This is not good", "Negative"),
        ("Not bad at all", "Positive"),
        ("The food was cold and the waiter was rude", "Negative"),
        ("I wouldn\u2019t recommend this to anyone", "Negative"),
        ("It isn't bad. It is excellent!", "Positive"),
        ("My cat sleeps in the kitchen", "Neutral"),
        ("", "Neutral"),
        ("\u4f60\u597d \u0000", "Neutral"),
    ],
)
def test_sentences_of_ones_own_get_the_label_they_mean(handler, text, label):
    assert best(handler, text) == label


def test_a_list_answers_each_sentence_as_alone(handler):
    assert handler.call(SAMPLES, None) == [handler.call(text, None)[0] for text in SAMPLES]


@pytest.mark.parametrize(
    "inputs, message",
    [
        ([], "expected at least one sentence, got an empty list"),
        ({"text": "x"}, "expected a string or a list of strings, got dict"),
        (None, "expected a string or a list of strings, got NoneType"),
        (["x", 1], "[1]: expected a string, got int"),
    ],
)
def test_bad_input_is_told(handler, inputs, message):
    with pytest.raises(serving.BadRequest) as caught:
        handler.call(inputs, None)
    assert str(caught.value) == message


def test_sentences_held_out_share_no_frame_or_thing_with_training(train):
    for held_out, others in [
        (train.HELD_OUT_FRAMES, train.FRAMES),
        (train.HELD_OUT_NEGATED, train.NEGATED),
        (train.HELD_OUT_REPORTS, train.REPORTS),
        (train.HELD_OUT_THINGS, train.THINGS),
    ]:
        assert not set(held_out) & set(others)
    texts = {text.lower() for text in train.training_sentences()[0]}
    assert not texts & {text.lower() for text in [*train.held_out_sentences()[0], *SAMPLES]}


def test_the_model_is_right_on_held_out_sentences(handler, train):
    texts, labels = train.held_out_sentences()
    answers = [preds[0][0] for preds in handler.call(texts, None)]
    assert np.mean([answer == train.LABELS[label] for answer, label in zip(answers, labels)]) > 0.95


def test_training_again_writes_the_model_that_is_there(tmp_path):
    folder = tmp_path / "sentiment"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("model", "__pycache__"))
    done = subprocess.run([sys.executable, "train.py"], cwd=folder, capture_output=True, text=True)
    assert "accuracy on 2000 held-out sentences: 0.9" in done.stdout, done.stderr
    with (
        np.load(folder / "model/sentiment.npz") as new,
        np.load(EXAMPLE / "model/sentiment.npz") as old,
    ):
        np.testing.assert_allclose(
            new["weights"].astype(float), old["weights"].astype(float), atol=0.02
        )


def test_the_model_is_small():
    assert (EXAMPLE / "model/sentiment.npz").stat().st_size < 1_000_000
