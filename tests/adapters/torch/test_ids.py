"""Row numbers beside the items of a data set: through loaders, workers, subsets and batches."""

import pickle
from collections import UserDict
from typing import NamedTuple

import pytest
from backends import require

torch = require("torch")

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
    random_split,
)

from gwa_torch import GWAMonitor, with_ids

X, Y = torch.arange(14.0).reshape(7, 2), torch.arange(7) % 3


class Rows(Dataset):
    """Items of any form, and attributes of its own."""

    classes = ("a", "b", "c")

    def __init__(self, make):
        self.make, self.epoch = make, 0

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return self.make(int(index))

    def set_epoch(self, epoch):
        self.epoch = epoch


def as_dict(i):
    return {"x": X[i], "labels": Y[i]}


class Point(NamedTuple):
    x: object
    y: object


FORMS = {
    "tuple": (lambda i: (X[i], Y[i]), lambda batch: batch[2]),
    "list": (lambda i: [X[i], Y[i]], lambda batch: batch[2]),
    "named tuple": (lambda i: Point(X[i], Y[i]), lambda batch: batch[2]),
    "dict": (as_dict, lambda batch: batch["ids"]),
    "mapping": (lambda i: UserDict(as_dict(i)), lambda batch: batch["ids"]),
    "tensor": (lambda i: X[i], lambda batch: batch[1]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_item_gets_its_number(form):
    make, ids = FORMS[form]
    dataset = with_ids(Rows(make))
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3)).tolist()
    batches = list(DataLoader(dataset, batch_size=3, sampler=order))
    assert torch.cat([ids(batch) for batch in batches]).tolist() == order
    for batch in batches:
        x = batch["x"] if isinstance(batch, dict) else batch[0]
        assert torch.equal(x, X[ids(batch)])


def test_workers_get_it_pickled():
    dataset = with_ids(Rows(as_dict))
    batches = list(DataLoader(dataset, batch_size=2, num_workers=1))
    assert torch.cat([batch["ids"] for batch in batches]).tolist() == list(range(7))
    copy = pickle.loads(pickle.dumps(with_ids(TensorDataset(X, Y))))  # noqa: S301
    assert copy[4][2] == 4
    assert torch.equal(copy[4][0], X[4])


def test_parts_keep_the_numbers_of_the_whole():
    dataset = with_ids(TensorDataset(X, Y))
    assert [item[2] for item in Subset(dataset, [5, 1])] == [5, 1]
    parts = random_split(dataset, [4, 3], torch.Generator().manual_seed(0))
    numbers = [torch.cat([ids for *_, ids in DataLoader(part, 2)]).tolist() for part in parts]
    assert sorted([*numbers[0], *numbers[1]]) == list(range(7))
    # Wrapped last, the rows of the part itself are numbered.
    part = Subset(TensorDataset(X, Y), [5, 1])
    assert [item[2] for item in with_ids(part)] == [0, 1]


def test_indices_of_any_kind():
    dataset = with_ids(TensorDataset(X, Y))
    assert [dataset[i][2] for i in (3, -1, torch.tensor(2), Y.numpy()[4])] == [3, 6, 2, 1]
    for index in (slice(1, 6, 2), slice(-3, None), [4, 0, -1], torch.tensor([2, 2])):
        x, _, ids = dataset[index]
        assert torch.equal(x, X[ids])
        assert ids.tolist() == torch.arange(7)[index].tolist()
    # A sampler of batches, as it is used without `batch_size`.
    batches = BatchSampler(SequentialSampler(dataset), 3, drop_last=False)
    loader = DataLoader(dataset, sampler=batches, batch_size=None)
    assert torch.cat([ids for *_, ids in loader]).tolist() == list(range(7))
    with pytest.raises(IndexError):
        dataset[7]


class Whole(Rows):
    """Reads a batch at once."""

    put_together = False

    def __getitems__(self, indices):
        self.asked = list(indices)
        if self.put_together:
            return {"x": X[indices], "labels": Y[indices]}
        return [self[i] for i in indices]


@pytest.mark.parametrize("put_together", [False, True])
def test_a_data_set_that_reads_whole_batches_still_does(put_together):
    inner = Whole(as_dict)
    inner.put_together = put_together
    collate = {"collate_fn": lambda batch: batch} if put_together else {}
    (batch,) = DataLoader(with_ids(inner), batch_sampler=[[6, 0, 3]], **collate)
    assert inner.asked == batch["ids"].tolist() == [6, 0, 3]
    assert torch.equal(batch["x"], X[[6, 0, 3]])


def test_it_is_the_data_set_otherwise():
    inner = Rows(as_dict)
    dataset = with_ids(inner)
    assert (len(dataset), dataset.classes) == (7, Rows.classes)
    dataset.set_epoch(5)
    assert inner.epoch == 5
    dataset.make = lambda i: (i,)
    assert dataset[3] == (3, 3)
    assert not hasattr(dataset, "column_names")
    assert with_ids(dataset) is dataset


def test_a_monitor_takes_them():
    dataset, model = with_ids(TensorDataset(X, Y)), torch.nn.Linear(2, 3)
    with GWAMonitor(model, num_samples=len(dataset)) as monitor:
        for x, y, ids in DataLoader(dataset, batch_size=3, shuffle=True):
            torch.nn.functional.cross_entropy(model(x), y).backward()
            monitor.update(y, ids=ids)
        assert monitor.end_epoch().count == 7


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


class Columns(Rows):
    column_names = ("x", "ids")


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (Stream(), TypeError, "must be map-style.*got Stream; .*number them 0..N-1"),
        (DataLoader(TensorDataset(X)), TypeError, "got DataLoader; wrap the data set and not"),
        ((i for i in range(3)), TypeError, "must be map-style.*got generator"),
        ({"train": X}, TypeError, r"got dict with the keys 'train'; .*with_ids\(datasets"),
        (Columns(as_dict), ValueError, 'no key "ids", got Columns with a column of that name'),
    ],
    ids=["stream", "loader", "generator", "splits", "column"],
)
def test_what_has_no_row_numbers_is_refused(dataset, error, message):
    with pytest.raises(error, match=message):
        with_ids(dataset)


def test_strings_are_no_ids():
    named = with_ids(Rows(lambda i: as_dict(i) | {"ids": f"image-{i}"}))
    with pytest.raises(ValueError, match=r"an item 'image-2'.*number them 0..N-1"):
        named[2]
    with pytest.raises(TypeError, match=r"must be an integer, got 'image-2'.*number them 0..N-1"):
        with_ids(Rows(as_dict))["image-2"]


# What it makes its fingerprints with says so of classes of pyarrow.
@pytest.mark.filterwarnings("ignore:Cannot (locate|pickle)")
def test_data_sets_of_hugging_face():
    datasets = pytest.importorskip("datasets")
    inner = datasets.Dataset.from_dict({"x": X.tolist(), "labels": Y.tolist()})
    dataset = with_ids(inner.with_format("torch"))
    batches = list(DataLoader(dataset, batch_size=3))
    assert torch.cat([batch["ids"] for batch in batches]).tolist() == list(range(7))
    assert torch.equal(torch.cat([batch["x"] for batch in batches]), X)
    assert (dataset.column_names, dataset["ids"]) == (["x", "labels"], list(range(7)))
    assert dataset[:3]["ids"].tolist() == [0, 1, 2]
    assert list(dataset["labels"]) == Y.tolist()
    with pytest.raises(TypeError, match=r"got DatasetDict with the keys 'train'"):
        with_ids(datasets.DatasetDict(train=inner))
    with pytest.raises(TypeError, match=r"map-style.*got IterableDataset"):
        with_ids(inner.to_iterable_dataset())
