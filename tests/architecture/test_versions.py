"""A version is stated in several files; they agree."""

import re
import tomllib

from source import ROOT

REQUIREMENT = re.compile(r"([\w-]+)>=([\d.]+)")
PIN = re.compile(r"^([\w-]+)==([\d.]+)$", re.MULTILINE)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def lower_bounds(project):
    """The lowest version of each package that the core or an extra requires."""
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    found = [REQUIREMENT.fullmatch(line) for line in lines if not line.startswith("gwa-core[")]
    assert None not in found, lines
    bounds = {match[1]: match[2] for match in found}
    assert len(bounds) == len({match.groups() for match in found}), "two bounds for one package"
    return bounds


def test_the_lowest_versions_are_those_of_the_project():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert dict(PIN.findall(read("lowest.txt"))) == lower_bounds(project)


def test_the_lowest_versions_are_not_above_those_of_the_tests():
    def numbers(version):
        return tuple(int(part) for part in version.split("."))

    newest = {name.lower(): version for name, version in PIN.findall(read("constraints.txt"))}
    for name, version in PIN.findall(read("lowest.txt")):
        assert numbers(version) <= numbers(newest[name]), name


def test_bounds_are_read():
    extras = {"a": ["x>=1.2", "gwa-core[b]"], "b": ["y-z>=3"]}
    project = {"dependencies": ["n>=2.0"], "optional-dependencies": extras}
    assert lower_bounds(project) == {"n": "2.0", "x": "1.2", "y-z": "3"}


def test_the_hooks_use_the_pinned_ruff():
    (revision,) = re.findall(r"ruff-pre-commit\n +rev: v([\d.]+)", read(".pre-commit-config.yaml"))
    assert revision == dict(PIN.findall(read("constraints.txt")))["ruff"]


def test_the_hosted_workflow_runs_every_python_that_is_named():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert f">={named[0]}" == project["requires-python"]
    workflow = read(".github/workflows/ci.yml")
    assert sorted(set(re.findall(r'"(3\.\d+)"', workflow))) == named
