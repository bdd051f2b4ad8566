"""English text to the features of the sentiment model, for main.py and train.py alike."""

import re
import zlib

import numpy as np

# hashed words; some 400 occur in training, so that few unknown words meet one of them
BUCKETS = 1 << 14
NEGATIONS = {"not", "no", "never", "cannot", "without", "hardly", "nothing", "nobody"}
NEGATED_WORDS = 4  # how far a negation reaches: "not a very good film"
# Words that take no side, and those of degree.
SILENT = set(
    str.split("""a an the this that these those i you he she it we they me him her us them my
        your his its our their and or so
        as at by for from in into of off on out over to up down with about after before since is
        are was were be been being am do does did done has have had having will would can could
        should may might must there here what which who how when where while then than too also
        just very really quite extremely absolutely pretty incredibly all both some any such one
        at all ever now""")
)


def tokenize(text: str) -> list[tuple[str, bool]]:
    """The lower-case words of a text, each with whether it is negated; "." stands for any stop.

    "I don't like it. It is slow" gives i, don't, like (negated), it (negated), ., it, is, slow.
    """
    tokens, left = [], 0
    for word in re.findall(r"[a-z]+(?:'[a-z]+)?|[.,!?;:]", text.lower().replace("\u2019", "'")):
        if word in NEGATIONS or word.endswith("n't"):
            tokens.append((word, False))
            left = NEGATED_WORDS
        elif not word[0].isalpha() or word == "but":
            tokens.append(("." if word != "but" else word, False))
            left = 0
        else:
            tokens.append((word, left > 0))
            left = max(0, left - 1)
    return tokens


def featurize(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The words of a text that may tell something, hashed, int64 [F] in 0..BUCKETS-1, and their
    signs, float64 [F].

    The sign is -1 where the word is negated, else 1. A word counts once; F is 0 for a text without
    such words.
    """
    words = {
        (word, negated)
        for word, negated in tokenize(text)
        if word.isalpha() and word not in SILENT | NEGATIONS
    }
    hashed = sorted(
        (zlib.crc32(word.encode()) % BUCKETS, -1 if negated else 1) for word, negated in words
    )
    return np.array([bucket for bucket, _ in hashed], np.int64), np.array(
        [sign for _, sign in hashed], np.float64
    )


def find_probabilities(weights: np.ndarray, neutral: float, text: str) -> np.ndarray:
    """The probabilities of Negative, Neutral and Positive, [3], by the sum of the words' polarities
    `weights`, [BUCKETS].

    A softmax over (-sum, neutral, sum): words that say nothing weigh nothing, and a negated word
    weighs the opposite.
    """
    features, signs = featurize(text)
    polarity = weights[features] @ signs
    exponentials = np.exp(np.array([-polarity, neutral, polarity]) - max(abs(polarity), neutral))
    return exponentials / exponentials.sum()
