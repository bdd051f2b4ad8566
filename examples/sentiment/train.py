"""Train the sentiment model on sentences made here, measure it on others, and write
model/sentiment.npz.

    python train.py              # trains, tells its accuracy, writes the model
    python train.py --measure    # prints the accuracy of the model that is there

A sentence is a frame filled with words. Most frames take a good, a bad or a plain word, so that
only the word tells the label, not the frame. The test sentences use frames and things held out of
training, but the good and bad words of training, since a model of words knows no others.
"""

import sys
from pathlib import Path

import numpy as np
from tokens import BUCKETS, featurize, find_probabilities

LABELS = ("Negative", "Neutral", "Positive")
BAD, PLAIN, GOOD = range(3)
MODEL = Path(__file__).parent / "model" / "sentiment.npz"
SEED, TRAINING, TESTING = 0, 20000, 2000  # sentences

# ==================================================================================================
# Sentences
# In: a random generator. Out: texts and labels.
# ==================================================================================================


def split_phrases(text):
    """The phrases between the bars of a text, each on one line."""
    return [" ".join(phrase.split()) for phrase in text.split("|")]


ADJECTIVES = {
    GOOD: str.split("""
        good great excellent amazing wonderful fantastic brilliant superb lovely delightful
        awesome perfect beautiful impressive outstanding pleasant enjoyable helpful friendly
        reliable fast quick simple easy smooth intuitive elegant clean comfortable useful clever
        charming funny fun fresh tasty delicious solid efficient fabulous terrific incredible nice
        stunning generous polite convenient satisfying refreshing magnificent flawless exciting
        remarkable affordable handy cool happy glad pleased satisfied thrilled better best
        responsive robust"""),
    BAD: str.split("""
        bad terrible awful horrible poor disappointing slow boring dull ugly broken useless
        annoying frustrating confusing rude unreliable painful clumsy noisy dirty expensive
        overpriced bland cold stale unpleasant dreadful mediocre pathetic ridiculous complicated
        difficult buggy messy weak cheap lousy tedious unhelpful unfriendly uncomfortable faulty
        fragile nasty disgusting stupid sad angry disappointed unhappy annoyed upset worse worst
        unusable unstable hard tiresome forgettable inconvenient shoddy sloppy"""),
    PLAIN: str.split("""
        blue green red white large small round square wooden metal monthly weekly annual local
        national digital electronic online public private central northern southern new old recent
        current open closed available standard regular ordinary average typical medium long short
        second third daily portable printed written visible separate different similar"""),
}
VERBS = {
    GOOD: str.split("love like enjoy adore appreciate recommend admire praise"),
    BAD: str.split("hate dislike despise loathe detest curse"),
    PLAIN: str.split("use own visit describe mention open order watch return request"),
}
PREDICATES = {
    GOOD: split_phrases("""
        works like a charm | made my day | exceeded all my expectations | does exactly what I need
        | saved me hours | is worth every penny | runs smoothly | made us smile | is a pleasure to
        use | is a joy | solved my problem | was well worth the wait | made a real improvement |
        impressed everyone | deserves five stars | is the best I have had | was a success | won me
        over | works well"""),
    BAD: split_phrases("""
        is a waste of time | was a waste of money | let me down | broke after a week | keeps
        crashing | fell apart | ruined my day | makes me angry | failed again | gave me a headache
        | is full of errors | stopped working | cost far too much | made everything worse | is a
        complete disaster | was a failure | deserves one star | is the worst I have had | lost all
        my data | does nothing right"""),
    PLAIN: split_phrases("""
        arrived on Monday | is on the table | has four parts | was made in 2019 | comes in two
        sizes | starts at nine | is near the station | contains three chapters | was updated last
        month | belongs to my brother | takes place in June | has been here for years | is used by
        the office | ends on Friday | gave me two keys | keeps the time | made a note of it |
        stopped at the station | is worth ten dollars | deserves a name | was moved to another
        room"""),
}
THINGS = str.split("""
        movie film book phone laptop restaurant hotel service app website course teacher staff
        room meal coffee pizza battery screen camera delivery package support update game story
        plot song album concert museum train bus flight seat car bike jacket shoe chair lamp
        printer keyboard interface documentation tool product company bank store city park weather
        meeting lesson team platform installation library workspace project server""")
HELD_OUT_THINGS = str.split("""
        novel tablet cafe airline garden watch speaker blender sofa umbrella podcast workshop
        clinic festival backpack router calendar deployment""")
PEOPLE = split_phrases("I | we | they | my friends | people | you")
DEGREES = [
    "",
    "very ",
    "really ",
    "so ",
    "quite ",
    "extremely ",
    "absolutely ",
    "just ",
    "pretty ",
    "incredibly ",
]
TIMES = split_phrases("""
        yesterday | last week | in March | on Tuesday | two days ago | this morning | since 2020 |
        for a month | every day | at noon""")

# {a}, {b}: adjectives of the label; {v}, {y}: a verb, its past; {p}: a predicate; {t}, {u}: things;
# {d}: a degree; {w}: people; {o}: a time.
FRAMES = split_phrases("""
        the {t} is {d}{a} | this {t} was {d}{a}. | what a {a} {t}! | {w} think the {t} is {d}{a} |
        the {t} is {d}{a} and {b}! | it is {d}{a}. | a {d}{a} {t} | my {t} is {a}, {b} and {a} |
        the {t} and the {u} were {d}{a} | {d}{a} | {w} had a {a} {t} {o} | that was a {d}{a} {t},
        and the {u} too | {w} {v} the {t} | {w} {v} this {t}! | {w} really {v} that {t} {o} | the
        {t} {p} | this {t} {p}. | {w} bought a {t} {o}. It {p} | the {u} {p}, {o}. | {w} {v} it |
        {w} {y} it | {w} {y} the {t} | the {t} {w} {y} {o} | he {v}s the {t} | the {t} is the {a}
        {u} {w} have ever had | the {t} looks {d}{a} | {t} with {u} is {d}{a} | using the {t} is
        {d}{a} | it {p} | {w} find the {t} {d}{a} and {d}{b} | {w} went there {o}; the {t} was {a}
        | both of them {v} the {t} and the {u}""")
NEGATED = split_phrases("""
        the {t} is not {d}{a} | this {t} was not {a} at all | it isn't {d}{a} | {w} don't {v} the
        {t} | {w} do not {v} this {t} {o} | the {t} wasn't {d}{a} | {w} never {v} that {t} | not a
        {d}{a} {t} | {w} don't think the {t} is {a} | {w} didn't {v} it | there is nothing {a}
        about the {t} | {w} don't {v} the {t}. It was there {o} | the {t} was never {a}""")
REPORTS = split_phrases("""
        {w} have the {t} {o} | {w} have used the {t} {o} | the {t} and the {u} are in the {t} |
        {w} took the {t} to the {u} {o} | {w} talked about the {t} | {w} put a {t} next to the {u}
        | the {t} has a {u} | is the {t} from {o}? | {w} have been working with a {u} {o} | {t} |
        {u} {o} | {w} did a lot {o} | there is no {t} | {w} don't have a {t} | it is not the {t}
        but the {u} | where is the {t} | {w} tried the {t} {o}""")

HELD_OUT_FRAMES = split_phrases("""
        {w} would describe our {t} as {d}{a} | despite the rain, their {t} felt {d}{a} | how {a}
        your {t} is, and how {b}! | in my opinion the {t} and its {u} remain {d}{a} | according to
        her, that {t} {p} | sometimes {w} {v} that {t} more than the {u} | say what you want, it
        {p} | {a} {t}, {b} {u}, would go again | {o} {w} {y} her {t}""")
HELD_OUT_NEGATED = split_phrases("""
        to be fair, your {t} isn't {d}{a} | my sister doesn't {v} that {t} of theirs | their {t}
        cannot be called {a} | {o} the {t} wasn't {a}, said the driver""")
HELD_OUT_REPORTS = split_phrases("""
        {w} carried the {t} upstairs {o} | she cycled from one {t} to another | please tell him
        which {t} to choose | somebody painted a {t} beside a {u} | the rain fell on the {t}
        {o}""")


def make_sentences(count, rng, frames, negated, reports, things):
    """Texts and labels, int64 [count]: half from plain frames, a quarter from negated
    ones, a quarter from reports of facts.
    """
    texts, labels = [], []
    for _ in range(count):
        kind = rng.integers(4)
        label = PLAIN if kind == 3 else int(rng.integers(3))
        frame = pick((frames, frames, negated, reports)[kind], rng)
        texts.append(fill(frame, label, things, rng))
        labels.append({GOOD: BAD, BAD: GOOD, PLAIN: PLAIN}[label] if kind == 2 else label)
    return texts, np.array(labels)


def fill(frame, label, things, rng):
    """A frame with words of the label in its slots; half of them begin with a capital letter."""
    adjectives, verb = ADJECTIVES[label], pick(VERBS[label], rng)
    text = frame.format(
        a=pick(adjectives, rng),
        b=pick(adjectives, rng),
        v=verb,
        y=f"{verb}{'d' if verb.endswith('e') else 'ed'}",
        d=pick(DEGREES, rng),
        p=pick(PREDICATES[label], rng),
        t=pick(things, rng),
        u=pick(things, rng),
        w=pick(PEOPLE, rng),
        o=pick(TIMES, rng),
    )
    return text[0].upper() + text[1:] if rng.integers(2) else text


def pick(choices, rng):
    return choices[rng.integers(len(choices))]


def training_sentences():
    return make_sentences(TRAINING, np.random.default_rng(SEED), FRAMES, NEGATED, REPORTS, THINGS)


def held_out_sentences():
    return make_sentences(
        TESTING,
        np.random.default_rng(SEED + 1),
        HELD_OUT_FRAMES,
        HELD_OUT_NEGATED,
        HELD_OUT_REPORTS,
        HELD_OUT_THINGS,
    )


# ==================================================================================================
# Model
# In: texts and labels. Out: the polarities of hashed words, float64 [BUCKETS], and the weight of
# Neutral.
# ==================================================================================================


def stack_features(texts):
    """Features of N texts and their signs, int64 and float64 [N, F], padded with sign 0."""
    rows = [featurize(text) for text in texts]
    shape = len(rows), max(len(features) for features, _ in rows)
    features, signs = np.zeros(shape, np.int64), np.zeros(shape)
    for index, (row, row_signs) in enumerate(rows):
        features[index, : len(row)], signs[index, : len(row)] = row, row_signs
    return features, signs


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def train(texts, labels, steps=300, rate=0.05, decay=3e-5, smoothing=0.04):
    """Fit by Adam on all sentences at once.

    Smoothed labels and weight decay keep the model from being too sure.
    """
    features, signs = stack_features(texts)  # [N, F]
    targets = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3  # [N, 3]
    parameters = np.zeros(BUCKETS + 1)  # the last one is the weight of Neutral
    first, second = np.zeros_like(parameters), np.zeros_like(parameters)
    for step in range(1, steps + 1):
        polarity = (parameters[features] * signs).sum(axis=1)  # [N]
        neutral = np.full_like(polarity, parameters[BUCKETS])
        # [N, 3]
        error = (softmax(np.column_stack([-polarity, neutral, polarity])) - targets) / len(labels)
        gradient = decay * parameters
        gradient[:BUCKETS] += np.bincount(
            features.ravel(), (signs * (error[:, GOOD] - error[:, BAD])[:, None]).ravel(), BUCKETS
        )
        gradient[BUCKETS] += error[:, PLAIN].sum()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        parameters -= (
            rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        )
    return parameters[:BUCKETS], parameters[BUCKETS]


def measure(weights, neutral, texts, labels):
    """The share of texts whose most likely label is the right one."""
    return float(
        np.mean(
            [
                find_probabilities(weights, neutral, text).argmax() == label
                for text, label in zip(texts, labels)
            ]
        )
    )


def main():
    if "--measure" not in sys.argv:
        weights, neutral = train(*training_sentences())
        MODEL.parent.mkdir(exist_ok=True)
        np.savez_compressed(
            MODEL,
            weights=weights.astype(np.float16),
            neutral=np.float32(neutral),
            labels=np.array(LABELS),
        )
    with np.load(MODEL) as saved:
        accuracy = measure(
            saved["weights"].astype(np.float64), float(saved["neutral"]), *held_out_sentences()
        )
    print(
        f"accuracy on {TESTING} held-out sentences: {accuracy:.4f}   {MODEL.name}: "
        f"{MODEL.stat().st_size // 1024} KB"
    )


if __name__ == "__main__":
    main()
