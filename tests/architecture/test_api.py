"""What is public is listed, exported and described, in the same words everywhere."""

import importlib
import inspect
from collections import defaultdict
from enum import Enum

import pytest
from backends import require
from source import CORE

import gwa_core

MODULES = sorted(path.stem for path in CORE.glob("*.py") if path.stem != "__init__")
PLUMBING = sorted(path.stem for path in (CORE / "_lib").glob("*.py") if path.stem != "__init__")

# Shared between modules of the core or with the adapters; users need none of it.
SHARED = {
    "attribution": {"QualitySums", "epoch_weight"},
    "history": {
        "Seen",
        "as_mapping",
        "epochs_cut_short",
        "expected_samples",
        "is_cut_short",
        "number",
        "see",
    },
    "rules": {"keep_best", "new_state", "smooth", "wait"},
    "score": {"separation"},
}

PUBLIC = sorted(gwa_core.__all__)
FUNCTIONS = [name for name in PUBLIC if inspect.isfunction(getattr(gwa_core, name))]
CLASSES = [name for name in PUBLIC if inspect.isclass(getattr(gwa_core, name))]
# Records and protocols are made by the library, or are nothing to be called.
RECORDS = {
    "Agreement",
    "EpochSummary",
    "HistorySummary",
    "Rule",
    "Selection",
    "SequenceParts",
    "Summary",
}

SECTIONS = ("Parameters", "Returns", "Raises", "Notes", "References", "Examples")
# No extended summary or See Also where there is nothing more to say; "boolean array" and "0-D
# array" are words of the house; a description may begin with a symbol.
UNASKED = {"ES01", "SA01", "PR06", "PR08"}
# A method of one line may leave out what its signature and its class say.
UNASKED_OF_METHODS = UNASKED | {"EX01", "PR01", "RT01"}
EXCUSED = {
    ("gwa_core.BestMetric", "PR03"),  # its own options first, where dataclasses put inherited ones
    ("gwa_core.Rule", "PR01"),  # a protocol is not called
}

# One name, one meaning, but the sentence goes on in another way.
SAME_BEGINNING = {"bias", "gradients", "label_smoothing", "mode", "targets", "warmup"}
# One name, and a meaning that depends on the place.
DIFFERENT = {
    "count",  # the fields of records
    "expected",
    "mean",
    "negative_fraction",
    "patience",  # of DipThenMax counts from the dip
    "record",  # read by a rule or by an average
    "rule",  # each with its own example
    "scores",
    "signal",  # a rule's or an average's
    "step",
    "total_steps",  # each with its own default
    "value",
    "where",  # masks samples or scores
}


def members(name):
    """The public methods and properties that a class defines itself, by qualified name."""
    for key, value in vars(getattr(gwa_core, name)).items():
        kinds = (classmethod, staticmethod, property)
        if not key.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds)):
            yield f"gwa_core.{name}.{key}"


def documented_parameters():
    """Yield (qualified name, parameter, type, description) over the public API."""
    scrape = require("numpydoc.docscrape")
    objects = [(name, getattr(gwa_core, name)) for name in PUBLIC]
    for name in CLASSES:
        for path in members(name):
            value = getattr(getattr(gwa_core, name), path.rpartition(".")[2])
            if callable(value):
                objects.append((path, value))
    for name, value in objects:
        for parameter in scrape.NumpyDocString(inspect.getdoc(value))["Parameters"]:
            for one in parameter.name.split(", "):
                yield name, one, parameter.type, " ".join(parameter.desc)


@pytest.mark.parametrize("name", [*MODULES, *(f"_lib.{name}" for name in PLUMBING)])
def test_all_lists_what_is_public(name):
    module = importlib.import_module(f"gwa_core.{name}")
    defined = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    }
    listed = set(module.__all__)
    assert defined - SHARED.get(name, set()) <= listed
    assert all(hasattr(module, key) for key in listed)
    if not name.startswith("_lib."):
        assert listed == defined - SHARED.get(name, set())
    assert list(module.__all__) == sorted(module.__all__)


def test_every_public_name_is_exported():
    modules = [importlib.import_module(f"gwa_core.{name}") for name in MODULES]
    listed = [key for module in modules for key in module.__all__]
    assert sorted(listed) == PUBLIC
    assert list(gwa_core.__all__) == PUBLIC
    assert gwa_core.__version__
    exported = {
        key
        for key, value in vars(gwa_core).items()
        if not key.startswith("_") and not inspect.ismodule(value)
    }
    assert exported == set(PUBLIC)


def test_the_package_says_that_it_is_typed():
    assert (CORE / "py.typed").is_file()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_every_section(name):
    doc = require("numpydoc.docscrape").NumpyDocString(inspect.getdoc(getattr(gwa_core, name)))
    assert [section for section in SECTIONS if not doc[section]] == []
    assert "Cost: " in " ".join(doc["Notes"]), "the cost is part of the contract"


@pytest.mark.parametrize("name", sorted(set(CLASSES) - RECORDS))
def test_a_class_has_its_sections(name):
    doc = require("numpydoc.docscrape").NumpyDocString(inspect.getdoc(getattr(gwa_core, name)))
    wanted = ["Parameters", "Examples"] + ["Raises"] * (name != "Moments")
    assert [section for section in wanted if not doc[section]] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_are_numpydoc(name):
    validate = require("numpydoc.validate").validate
    excused = UNASKED | ({"EX01"} if name in RECORDS else set())
    for path in (f"gwa_core.{name}", *(members(name) if name in CLASSES else ())):
        errors = [
            (path, code, message)
            for code, message in validate(path)["errors"]
            if code not in excused and (path, code) not in EXCUSED
        ]
        assert errors == []
        excused = UNASKED_OF_METHODS


def test_the_same_parameter_has_the_same_words():
    words = defaultdict(lambda: defaultdict(list))
    for place, name, kind, description in documented_parameters():
        if name in DIFFERENT:
            continue
        if name in SAME_BEGINNING:
            description = " ".join(description.replace(",", "").replace(".", "").split()[:4])
        words[name, kind][description].append(place)
    assert {key: dict(texts) for key, texts in words.items() if len(texts) > 1} == {}
    assert sum(len(places) for texts in words.values() for places in texts.values()) > 50


@pytest.mark.parametrize("name", FUNCTIONS)
def test_three_arrays_or_more_go_by_keyword(name):
    # Two matrices of equal shape are swapped in silence.
    signature = inspect.signature(getattr(gwa_core, name))
    arrays = [p for p in signature.parameters.values() if "Array" in str(p.annotation)]
    if sum(p.default is p.empty for p in arrays) >= 3:
        # What is measured may go first: alone it has nothing to be swapped with.
        first = 1 if name == "score_agreement" else 0
        assert all(p.kind is p.KEYWORD_ONLY for p in arrays[first:])


def test_options_are_words_and_not_flags_of_an_enumeration():
    assert not any(issubclass(getattr(gwa_core, name), Enum) for name in CLASSES)
