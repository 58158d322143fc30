"""The backend cases of the tests, and what each public function is checked on.

A claim about a backend stands once, here: tests are made from these tables, and so is the page of
backends in the documentation.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import array_api_compat as compat
import numpy as np
import pytest

REQUIRE_ALL = "GWA_REQUIRE_ALL"


def require(module: str) -> Any:
    """Import a module, or skip the test; with GWA_REQUIRE_ALL=1 a missing module is a failure."""
    top = module.partition(".")[0]
    if importlib.util.find_spec(top) is None:
        if os.environ.get(REQUIRE_ALL) == "1":
            pytest.fail(f"{top} is not installed, and {REQUIRE_ALL}=1 demands it")
        pytest.skip(f"{top} is not installed")
    return importlib.import_module(module)


@dataclass(frozen=True)
class Case:
    """One library with one device, one dtype of the input and one way to be called."""

    name: str
    library: str  # what must be installed
    dtype: str  # of the floating-point inputs
    about: str
    device: str | None = None
    option: str = ""  # "readonly", "strictest", "x32", "x64"
    transform: str = ""  # "", "jit", "compile"
    has_float64: bool = True

    @property
    def values(self) -> bool:
        """Whether there are values to check, not only shapes and dtypes."""
        return self.device != "meta"

    @property
    def slow(self) -> bool:
        """Whether each call compiles something, so that one call of every function must do."""
        return self.transform == "compile" or (self.library == "jax" and not self.transform)

    @property
    def compiles(self) -> bool:
        """Whether it belongs to the grid of compiled cases beside the one of the usual run."""
        return self.slow or (self.transform == "jit" and self.option == "x64")

    @property
    def result_dtype(self) -> str:
        """The promise for results: the input's dtype, but at least float32."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def accumulator_dtype(self) -> str:
        """The promise for moments: float64 where the device has it."""
        return "float64" if self.has_float64 else "float32"

    @property
    def index_dtype(self) -> str:
        """Integers of the inputs."""
        return "int32" if self.option == "x32" or self.device == "no_x64" else "int64"


CASES = (
    Case("numpy-f64", "numpy", "float64", "NumPy, float64"),
    Case("numpy-f32", "numpy", "float32", "NumPy, float32"),
    Case("numpy-f16", "numpy", "float16", "NumPy, half precision raised to float32"),
    Case("numpy-readonly", "numpy", "float64", "NumPy, arrays not writeable", option="readonly"),
    Case("strict", "array_api_strict", "float64", "array-api-strict, all of the standard"),
    Case(
        "strict-strictest",
        "array_api_strict",
        "float64",
        "array-api-strict without boolean indexing, data-dependent shapes and extensions",
        option="strictest",
    ),
    Case(
        "strict-no_float64",
        "array_api_strict",
        "float32",
        "array-api-strict on a device without float64, as Apple's MPS",
        device="no_float64",
        has_float64=False,
    ),
    Case(
        "strict-no_x64",
        "array_api_strict",
        "float32",
        "array-api-strict on a device without 64-bit types, as JAX by default",
        device="no_x64",
        has_float64=False,
    ),
    Case(
        "strict-device1",
        "array_api_strict",
        "float64",
        "array-api-strict on a device that is not the default one",
        device="device1",
    ),
    Case("torch-f32", "torch", "float32", "PyTorch, float32"),
    Case("torch-f64", "torch", "float64", "PyTorch, float64"),
    Case("torch-bf16", "torch", "bfloat16", "PyTorch, bfloat16 raised to float32"),
    Case(
        "torch-compile",
        "torch",
        "float32",
        "PyTorch, torch.compile(fullgraph=True)",
        transform="compile",
    ),
    Case("torch-meta", "torch", "float32", "PyTorch, meta device", device="meta"),
    Case("jax-x32", "jax", "float32", "JAX, 32-bit", option="x32", has_float64=False),
    Case(
        "jax-x32-jit",
        "jax",
        "float32",
        "JAX, 32-bit, under jit",
        option="x32",
        transform="jit",
        has_float64=False,
    ),
    Case("jax-x64-jit", "jax", "float64", "JAX, 64-bit, under jit", option="x64", transform="jit"),
)

CASE = {case.name: case for case in CASES}

ARRAY_FUNCTIONS = (
    "alignment_scores",
    "alignment_from_logits",
    "alignment_from_logit_gradients",
    "score_agreement",
    "sequence_parts",
    "sequence_scores",
    "gradient_alignment",
    "gradient_norms",
    "residual",
    "weighted_targets",
    "loss_weights",
    "project",
    "Moments.from_batch",
    "Moments.merge",
    "gwa_score",
    "summarize",
    "exponential_window",
    "glass_delta",
    "signal_standard_error",
    "rank_samples",
    "rank_samples(per_class=True)",
    "label_quality",
    "LabelQuality",
    "update_share",
    "signals.margin",
    "signals.sample_loss",
    "signals.label_probability",
    "signals.el2n",
    "signals.gradient_norm",
    "signals.self_influence",
    "signals.head_hessian_trace",
    "signals.sample_signals",
    "signals.cartography",
    "signals.forgetting_events",
    "signals.prediction_changes",
    "signals.centred_class_means",
    "signals.class_alignment",
    "signals.gradient_disparity",
    "signals.head_gradient_disparity",
    "signals.matrix_entropy_difference_ratio",
    "signals.matrix_mutual_information_ratio",
    "signals.mean_pairwise_alignment",
    "signals.optimum_alignment",
    "signals.pairwise_alignment",
    "signals.rescaled_loss",
    "signals.OverEpochs",
)
HOST_FUNCTIONS = ("GWATracker", "signals.TrackedSignals")
FUNCTIONS = ARRAY_FUNCTIONS + HOST_FUNCTIONS

# Public names that see Python numbers only, so that backends mean nothing to them.
PLAIN = (
    "Agreement",
    "BestMetric",
    "DipThenMax",
    "EarlyStopper",
    "EpochAverage",
    "EpochSummary",
    "Extremum",
    "GradientDisparity",
    "HistorySummary",
    "JLSketch",
    "LabelWave",
    "MaxBimodality",
    "MaxGWA",
    "MaxSeparation",
    "Rule",
    "Selection",
    "SequenceParts",
    "Summary",
    "average_shares",
    "epoch_weights",
    "jl_dimension",
    "near_ties",
    "rule_for",
    "select_epoch",
    "select_step",
    "summarize_history",
    "warmup_steps",
    "signals.Cartography",
    "signals.SIGNALS",
    "signals.Signal",
)

SORTING = ("rank_samples", "rank_samples(per_class=True)")


def skip_reason(function: str, case: Case) -> str | None:
    """Return why a function is not checked on a case, or None where it is."""
    if function in SORTING and case.device == "no_x64":
        return "array-api-strict's own argsort makes int64, which this device lacks"
    if function == "rank_samples(per_class=True)" and (case.transform or not case.values):
        return "the number of classes is read from the values of `targets`"
    if function in HOST_FUNCTIONS and (case.transform or not case.values):
        return "collects on the host, outside of traced code"
    if function.startswith("signals.matrix_") and case.option == "strictest":
        return "eigenvalues are in the extension linalg of the standard"
    return None


def capabilities() -> Iterator[tuple[str, Case, str]]:
    """Yield (function, case, claim): "values", "shape and dtype", or "skipped: why"."""
    for function in FUNCTIONS:
        for case in CASES:
            reason = skip_reason(function, case)
            claim = "values" if case.values else "shape and dtype"
            yield function, case, claim if reason is None else f"skipped: {reason}"


class Backend:
    """What a test needs of an open case: make arrays, call functions, read results."""

    def __init__(self, case: Case, xp: Any) -> None:
        self.case = case
        self.xp = xp
        self.device = (
            xp.Device(case.device)
            if case.library == "array_api_strict" and case.device
            else case.device
        )

    def array(self, values: Any) -> Any:
        """Return floats in the dtype of the case, integers to index with, or booleans."""
        values = np.asarray(values)
        kind = values.dtype.kind
        name = {"f": self.case.dtype, "i": self.case.index_dtype, "b": "bool"}[kind]
        if self.case.library == "torch":
            return self.xp.asarray(values).to(dtype=getattr(self.xp, name), device=self.case.device)
        values = values.astype(name)
        if self.case.library == "numpy":
            values.flags.writeable = self.case.option != "readonly"
            return values
        return self.xp.asarray(values, device=self.device)

    def arrays(self, **values: Any) -> dict[str, Any]:
        """Return `array` of each."""
        return {name: self.array(value) for name, value in values.items()}

    def call(self, run: Any, arrays: Any) -> Any:
        """Run a function of a dictionary (or another tree) of arrays in the way of the case."""
        if self.case.transform == "jit":
            return require("jax").jit(run)(arrays)
        if self.case.transform == "compile":
            torch = require("torch")
            torch._dynamo.reset()
            with warnings.catch_warnings():
                # PyTorch's word on the cached look-up of namespaces, which it then traces anyway.
                warnings.filterwarnings("ignore", message=".*functools.lru_cache.*")
                return torch.compile(run, fullgraph=True, backend="eager")(arrays)
        return run(arrays)

    def read(self, x: Any) -> np.ndarray:
        """Return the values in NumPy, floats in float64."""
        if self.case.library == "torch":
            x = x.detach().cpu()
            x = (x.double() if x.is_floating_point() else x).numpy()
        elif self.case.library == "array_api_strict":
            x = np.asarray(compat.to_device(x, self.xp.Device("CPU_DEVICE")))
        x = np.asarray(x)
        return x if x.dtype.kind in "biu" else x.astype(np.float64)

    def check(self, x: Any, *, shape: tuple[int, ...], dtype: str) -> None:
        """Assert that namespace and device are those of the inputs, and shape and dtype right."""
        assert compat.array_namespace(x) is self.xp
        if self.case.library != "jax":
            assert compat.device(x) == compat.device(self.array(np.zeros(1)))
        assert tuple(x.shape) == shape
        assert x.dtype == getattr(self.xp, dtype), f"{x.dtype} is not {dtype}"

    def tolerance(self, dtype: str) -> float:
        """Rounding to expect of a result that was computed in this dtype."""
        return 2e-12 if dtype == "float64" else 1e-5


@contextmanager
def open_case(case: Case) -> Iterator[Backend]:
    """Set the library up as the case says, and back afterwards."""
    library = require(case.library)
    with ExitStack() as stack:
        if case.option == "strictest":
            flags = library.ArrayAPIStrictFlags(
                boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
            )
            stack.enter_context(flags)
        if case.library == "torch":
            # The other default than the case's own: nothing may lean on it.
            other = library.float64 if case.dtype == "float32" else library.float32
            stack.callback(library.set_default_dtype, library.get_default_dtype())
            library.set_default_dtype(other)
        if case.library == "jax":
            stack.enter_context(enable_x64(case.option == "x64"))
            stack.enter_context(library.numpy_dtype_promotion("strict"))
        zero = library.zeros(1) if case.library != "jax" else library.numpy.zeros(1)
        yield Backend(case, compat.array_namespace(zero))


def enable_x64(on: bool) -> Any:
    """JAX's switch, which has moved."""
    module = require("jax")
    if not hasattr(module, "enable_x64"):
        module = require("jax.experimental")
    return module.enable_x64(on)
