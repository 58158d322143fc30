"""Every public array function on every backend: values, dtype, device, namespace, inputs intact."""

import copy

import numpy as np
import pytest
from backends import CASES, FUNCTIONS, HOST_FUNCTIONS, PLAIN, capabilities, open_case, skip_reason
from scenarios import SCENARIOS as OWN
from signal_scenarios import SIGNAL_SCENARIOS

import gwa_core
from gwa_core import signals

SCENARIOS = (*OWN, *SIGNAL_SCENARIOS)

# Where each call compiles something, one scenario a function must do.
FIRST = {scenario.function: scenario for scenario in reversed(SCENARIOS)}
PAIRS = [
    pytest.param(
        scenario,
        case,
        id=f"{scenario.name}-{case.name}",
        marks=[pytest.mark.slow] if case.compiles else [],
    )
    for scenario in SCENARIOS
    for case in CASES
    if not case.slow or scenario is FIRST[scenario.function]
]


@pytest.mark.parametrize(("scenario", "case"), PAIRS)
def test_function_on_backend(scenario, case):
    reason = skip_reason(scenario.function, case)
    if reason is not None:
        pytest.skip(reason)
    with open_case(case) as backend:
        arrays = backend.arrays(**scenario.arrays)
        before = copy.deepcopy(arrays)
        result = backend.call(scenario.run, arrays)
        outputs = result if isinstance(result, tuple) else (result,)
        dtype = {
            "result": case.result_dtype,
            "count": "float32",
            "accumulator": case.accumulator_dtype,
            "index": "int32" if case.option == "x32" else "int64",
        }[scenario.dtype]
        rounded = (
            {name: backend.read(array) for name, array in arrays.items()}
            if case.values
            else scenario.arrays
        )
        want = scenario.oracle(**rounded)
        wants = want if isinstance(want, tuple) else (want,)
        for got, value in zip(outputs, wants, strict=True):
            backend.check(got, shape=np.shape(value), dtype=dtype)
        if not case.values:
            return
        for name, array in arrays.items():
            np.testing.assert_array_equal(backend.read(array), backend.read(before[name]))
        size = backend.tolerance(dtype) * scenario.slack
        for got, value in zip(outputs, wants, strict=True):
            np.testing.assert_allclose(backend.read(got), value, rtol=size, atol=size)


def test_table_of_capabilities_is_complete():
    checked = {scenario.function for scenario in SCENARIOS}
    assert checked | set(HOST_FUNCTIONS) == set(FUNCTIONS)
    named = {name for name in (*FUNCTIONS, *PLAIN) if name.startswith("signals.")}
    assert named == {f"signals.{name}" for name in signals.__all__}
    public = {name.partition(".")[0].partition("(")[0] for name in (*FUNCTIONS, *PLAIN)}
    assert public - {"signals"} == set(gwa_core.__all__)
    rows = list(capabilities())
    assert len(rows) == len(FUNCTIONS) * len(CASES)
    # Nothing is skipped everywhere, and every case carries something.
    for column in (0, 1):
        for key in {row[column] for row in rows}:
            assert any("skipped" not in row[2] for row in rows if row[column] == key), key
