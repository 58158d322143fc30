"""Write the pages that are made from the tests: `python docs/generate.py`.

`backends.md` comes from the tables in tests/backends.py. `bad-input.md` comes from the tables called
CASES in tests/core and tests/adapters/offline, whose rows begin with a name and a function that
raises; the message shown is the one it raised. Measured figures come from benchmarks/results and
experiments/results. A test compares the committed pages with these.
"""

from __future__ import annotations

import html
import importlib.util
import inspect
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS, TESTS = ROOT / "docs", ROOT / "tests"
CASE_FOLDERS = (TESTS / "core", TESTS / "adapters" / "offline", TESTS / "adapters" / "torch")
PLACES = [str(ROOT), str(ROOT / "adapters"), str(TESTS), str(TESTS / "adapters" / "torch")]

# What a library or the operating system adds in brackets differs between their versions.
FOREIGN = re.compile(r"(is it truncated or damaged\?|cannot be read:|is not JSON:).*$", re.DOTALL)

BACKENDS_HEAD = """\
# Backends

Arrays in are arrays out, of the same library and on the same device. This page is made from
`tests/backends.py`: every public function of `gwa_core` that takes arrays is tested on every case
below, against slow NumPy code that is obviously right. In the table of functions "yes" means that
the numbers are compared, "shapes" that only shapes and dtypes are, as there are no numbers.

## Cases

| case | what it is | floats in | results | moments |
| --- | --- | --- | --- | --- |
"""

BACKENDS_MIDDLE = """
Results are in the dtype of the inputs, but at least float32. Moments are float64 where the device
has it.

## Functions

"""

BACKENDS_TAIL = """
These see plain Python numbers only, so that backends mean nothing to them: {plain}.

## Known differences

- Target values (labels outside 0..C-1, soft targets that do not sum to one) raise on NumPy arrays.
  On other libraries looking would wait for the device: a label out of range gives nan instead, and
  soft targets are taken as they are.
- NumPy computes a float32 score again in float64 where its terms cancel; other libraries keep
  float32 accuracy there. See [Numerics](concepts/numerics.md#cancellation).
- Under `jax.jit` and `torch.compile` the options (`loss`, `label_smoothing`, `k`, a sketch) are
  constants.
- JAX without `jax_enable_x64` has no float64: moments are then pairs of float32.
- Dask and CuPy are not tested.
"""

BAD_INPUT_HEAD = """\
# Bad input

What a mistake is answered with: the argument, what was expected, what came, and the usual cause.
This page is made by the tests: each row was run, and the message is the one that was raised.
Everything raised on saved features and run folders is a `FeaturesError`, which is a `ValueError`;
the command line prints the message alone and exits with code 2.

On arrays of an accelerator, and on traced ones, only shapes, dtypes and options are checked.
"""

TITLES = {
    "core": "The core, `gwa_core`",
    "offline": "Saved features and run folders, `gwa_offline`",
    "torch": "PyTorch, `gwa_torch`",
}


def backends_page() -> str:
    """Return the page of backends."""
    sys.path[:0] = PLACES
    import backends

    text = BACKENDS_HEAD
    for case in backends.CASES:
        text += (
            f"| {case.name} | {case.about} | {case.dtype} | {case.result_dtype} | "
            f"{case.accumulator_dtype} |\n"
        )
    text += BACKENDS_MIDDLE
    groups = {case.name: _group(case) for case in backends.CASES}
    names = list(dict.fromkeys(groups.values()))
    text += f"| function | {' | '.join(names)} |\n" + "| --- " * (len(names) + 1) + "|\n"
    notes: list[str] = []
    for function, rows in groupby(backends.capabilities(), key=lambda row: row[0]):
        claims: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
        for _, case, claim in rows:
            claims[groups[case.name]].append((case.name, claim))
        text += f"| `{function}` | {' | '.join(_cell(claims[name], notes) for name in names)} |\n"
    text += "\n" + "".join(f"{number}. {note}\n" for number, note in enumerate(notes, 1))
    return text + BACKENDS_TAIL.format(plain=", ".join(f"`{name}`" for name in backends.PLAIN))


def _group(case: Any) -> str:
    library = {"numpy": "NumPy", "array_api_strict": "strict", "torch": "PyTorch", "jax": "JAX"}
    kind = case.transform or ("meta" if case.device == "meta" else "")
    return f"{library.get(case.library, case.library)} {kind}".strip()


def _cell(claims: list[tuple[str, str]], notes: list[str]) -> str:
    kinds = {claim for _, claim in claims}
    good = sorted(kind for kind in kinds if not kind.startswith("skipped: "))
    marks = ["yes" if kind == "values" else "shapes" for kind in good] or ["no"]
    for name, claim in claims:
        if claim.startswith("skipped: "):
            where = "" if not good else f"not on {name}: "
            note = where + claim.removeprefix("skipped: ") + "."
            if note not in notes:
                notes.append(note)
            mark = f"({notes.index(note) + 1})"
            if mark not in marks:
                marks.append(mark)
    return " ".join(marks)


def bad_input_page() -> str:
    """Return the page of bad input."""
    text = BAD_INPUT_HEAD
    for folder in CASE_FOLDERS:
        text += f"\n## {TITLES[folder.name]}\n\n| input | error |\n| --- | --- |\n"
        for label, function in _cases(folder):
            text += f"| {_plain(label)} | {raised(function)} |\n"
    return text


def _cases(folder: Path) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield name and function of each row of the tables of bad input in a folder."""
    sys.path[:0] = PLACES
    for file in sorted(folder.glob("test_*.py")):
        if re.search(r"^CASES = [\[(]", file.read_text(encoding="utf-8"), re.MULTILINE):
            for row in _load(file).CASES:
                yield row[0], row[1]


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bad_input_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def raised(function: Callable[..., Any]) -> str:
    """Run a case in an empty folder and return its error, ready for a table."""
    needed = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(*([Path(folder)] * len(needed)))
        except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
            text = str(error).replace(f"{folder}/", "").replace(folder, "folder")
            text = FOREIGN.sub(r"\1 …", text)
            return f"`{type(error).__name__}`: {_plain(text)}"
    raise AssertionError(f"{function} raised nothing")


def _plain(text: str) -> str:
    """Escape what Markdown would take for markup, except code in backticks."""
    parts = re.split(r"(`[^`]*`)", text.replace("\n", " "))
    return "".join(
        part.replace("|", "\\|")
        if part.startswith("`")
        else re.sub(r"([\\*_\[\]|])", r"\\\1", html.escape(part, quote=False))
        for part in parts
    )


SITUATIONS_HEAD = """\
# What is right under what

In each of these ways to train, the scores of `GWAMonitor` were compared with a float64 backward pass a sample, at
the weights that the step itself had. This page is made from the tests (`tests/adapters/torch`), which run them on the
CPU; the same tests are run on a GPU by hand.

| you train with | how it is done | differs at most by |
| --- | --- | --- |
"""

SITUATIONS_MIDDLE = """
## Several processes

Two real processes, compared with one that trains on all of it.

| you train with | what is tested |
| --- | --- |
"""

SITUATIONS_TAIL = """
## On a GPU

`torch.cuda.set_sync_debug_mode("error")` holds through whole epochs, with and without ids; only `end_epoch`
waits. Static buffers of CUDA graphs (`mode="reduce-overhead"`), half precision and strided logits are tested there,
too. NCCL and DataParallel have tests that need two GPUs and are skipped on one.

## What is not

- Heads whose forward is not PyTorch's own (LoRA on the head, quantised heads, cosine classifiers) are refused.
- A hook is not seen by a graph that was compiled before it. The first `update` says so.
- Logits that are changed in place before `update` are noticed, except under `torch.compile`.
- Losses with a fused head never call the module; score by [`head_scores`](../api/gwa_torch/scoring.md).
- A hook of yours that changes the output of the head, and a loss of rescaled, sliced or soft-capped logits: the
  gradient is not the one measured.
- `torch.compile(fullgraph=True)` around a checkpoint that holds the head needs
  `torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True`.
- `torch.jit.script` does not take a model with hooks in Python; close the monitor before.
"""


def situations_page() -> str:
    """Return the page of the ways to train."""
    sys.path[:0] = PLACES
    import ranks
    import situations

    text = SITUATIONS_HEAD
    for case in situations.SITUATIONS:
        text += f"| {case.name} | {case.about} | {case.tolerance:g} |\n"
    text += SITUATIONS_MIDDLE
    for name, work in ranks.WORKS.items():
        text += f"| {name} | {' '.join((work.__doc__ or '').split())} |\n"
    return text + SITUATIONS_TAIL


SPEED_HEAD = """\
# Speed on a GPU

Measured on an {device} with PyTorch {torch}, each beside the others in one run (`python -m benchmarks gpu
training`; the files are in `benchmarks/results`). Times are of the device: in a training loop the launches of a step
are hidden behind the work of the one before. "Paper's formula" is Algorithm 1 as one writes it down, without the
(N, C, D) gradient.

## A batch whose logits are there
"""

SPEED_BATCH = """
| {size} | time | extra memory |
| --- | --- | --- |
"""

SPEED_TAIL = """
## A language model's head, without its logits

{tokens}:

| | time | extra memory |
| --- | --- | --- |
| `head_scores(latents=..., weight=...)` | {ours:.1f} ms | {ours_mb:,.0f} MB |
| logits in memory, paper's formula | {paper:.1f} ms | {paper_mb:,.0f} MB |
| the product with the weight alone | {product:.1f} ms | |

## A training step

{step}, images on the device, AdamW, {ms:.1f} ms a step.

| | images/s beside no monitor | standard error |
| --- | --- | --- |
| `GWAMonitor` with ids, steps in turn | {monitor:.4f} | {monitor_se:.4f} |
| the same from the time its kernels add, {added:.3f} ms | {by_added:.4f} | |
| torchmetrics accuracy | {accuracy:.4f} | {accuracy_se:.4f} |
| paper's formula, without ids | {formula:.4f} | {formula_se:.4f} |
| a pass over 1 % validation data an epoch | {validation:.4f} | |

Peak memory: {peak:,.1f} MB with the monitor, {peak_alone:,.1f} MB without.
"""


def speed_page() -> str:
    """Return the page of speed, from the results of the benchmarks."""
    results = ROOT / "benchmarks" / "results"
    gpu, training = (
        json.loads((results / f"{name}.json").read_text()) for name in ("gpu", "training")
    )
    text = SPEED_HEAD.format(**gpu)
    sizes = dict.fromkeys(key.partition(":")[0] for key in gpu if key.startswith("N="))
    for size in sizes:
        text += SPEED_BATCH.format(size=f"{size}, float32")
        prefix = f"{size}: ms, "
        ways = [key.removeprefix(prefix) for key in gpu if key.startswith(prefix)]
        for way in sorted(ways, key=lambda way: gpu[prefix + way]):
            memory = gpu.get(f"{size}: extra MB, {way}")
            label = {"ours": "**`gwa_torch`**, one kernel"}.get(way, way)
            shown = "" if memory is None else f"{memory:,.2f} MB"
            text += f"| {label} | {gpu[prefix + way]:.4g} ms | {shown} |\n"
    lm = next(key for key in gpu if key.startswith("head of")).partition(":")[0]
    vit = next(key for key in training if key.startswith("ViT")).partition(":")[0]
    beside = f"{vit}: images/s, with {{}} / alone"
    error = f"{vit}: standard error of that, with {{}}"
    others = {"monitor": "the monitor", "accuracy": "torchmetrics accuracy"}
    others["formula"] = "the paper's formula"
    return text + SPEED_TAIL.format(
        tokens=lm[0].upper() + lm[1:],
        ours=gpu[f"{lm}: ms, ours"],
        ours_mb=gpu[f"{lm}: extra MB, ours"],
        paper=gpu[f"{lm}: ms, logits and the paper's formula"],
        paper_mb=gpu[f"{lm}: extra MB, logits and the paper's formula"],
        product=gpu[f"{lm}: ms, the product with the weight alone"],
        step=vit,
        ms=training[f"{vit}: ms a step"],
        added=training[f"{vit}: ms on the device added by hook and update"],
        by_added=training[f"{vit}: images/s by that, with the monitor / alone"],
        validation=training[f"{vit}: images/s of an epoch with a 1 % validation pass / alone"],
        peak=training[f"{vit}: peak MB in a step, with the monitor"],
        peak_alone=training[f"{vit}: peak MB in a step, alone"],
        **{name: training[beside.format(way)] for name, way in others.items()},
        **{f"{name}_se": training[error.format(way)] for name, way in others.items()},
    )


def labels_page() -> str:
    """Return the page beside cleanlab, with what was measured drawn anew."""
    page = (DOCS / "sklearn" / "cleanlab.md").read_text(encoding="utf-8")
    begin, end = "## What was measured\n", "\n## When to use which\n"
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{_load(DOCS / 'measured.py').labels_section()}{end}{tail}"


def results_page() -> str:
    """Return the chapter of results, with its tables drawn anew."""
    from experiments.catalogue import TABLES
    from experiments.store import RESULTS, read

    page = (DOCS / "results" / "index.md").read_text(encoding="utf-8")
    results = read(RESULTS)
    for name, make in TABLES.items():
        begin, end = f"<!-- table {name} -->\n", f"<!-- end of {name} -->\n"
        if begin in page:  # a table whose runs are missing has no place yet
            head, _, rest = page.partition(begin)
            _, _, tail = rest.partition(end)
            page = f"{head}{begin}\n{make(results)}\n{end}{tail}"
    return page


PAGES = {
    "backends.md": backends_page,
    "bad-input.md": bad_input_page,
    "results/index.md": results_page,
    "sklearn/cleanlab.md": labels_page,
    "torch/situations.md": situations_page,
    "torch/speed.md": speed_page,
}


def main() -> None:
    """Write the pages."""
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), encoding="utf-8")
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
