"""Sentiment of English sentences: the example of CellStrat's Hub API guide, with a small model of
our own.

Each word has a polarity that train.py has learnt, a negated one the opposite; their sum decides.
NumPy runs it: adding up a few numbers needs no framework, and the server is up at once. A handler
of TensorFlow or PyTorch has the same form.
"""

import os
from pathlib import Path

import numpy as np
from tokens import find_probabilities

from serving import BadRequest, hub_handler

MODEL_DIR = os.getenv("MODEL_DIR")

with np.load(Path(MODEL_DIR or "model", "sentiment.npz")) as saved:
    LABELS = saved["labels"].tolist()
    WEIGHTS = saved["weights"].astype(np.float64)  # [BUCKETS]
    NEUTRAL = float(saved["neutral"])


@hub_handler
def inference_handler(inputs, _):
    """For a sentence, or each of a list of them: the labels with their percentages, highest first.

    Raises BadRequest when `inputs` is anything else, or an empty list.
    """
    output = []
    for sentence in read_sentences(inputs):
        probs = find_probabilities(WEIGHTS, NEUTRAL, sentence)  # [3]
        preds = [(label, round(float(p) * 100, 2)) for label, p in zip(LABELS, probs)]
        output.append(sorted(preds, key=lambda pred: pred[1], reverse=True))
    return output


def read_sentences(inputs):
    """The sentences of a request as a list; raises BadRequest."""
    if isinstance(inputs, str):
        return [inputs]
    if not isinstance(inputs, list):
        raise BadRequest(f"expected a string or a list of strings, got {type(inputs).__name__}")
    if not inputs:
        raise BadRequest("expected at least one sentence, got an empty list")
    for index, sentence in enumerate(inputs):
        if not isinstance(sentence, str):
            raise BadRequest(f"[{index}]: expected a string, got {type(sentence).__name__}")
    return inputs
