"""How numbers are written, and what the records of a run are counted in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from adapters.offline.reports import BEST, SICK, make_report
from hypothesis import given
from hypothesis import strategies as st

from gwa_core import BestMetric, MaxSeparation, Selection, select_epoch
from gwa_offline.analysis.messages import messages_of
from gwa_offline.analysis.view import (
    average_sentence,
    class_rows,
    epoch_numbers,
    format_number,
    observed,
    percent,
    position,
    pulling,
    pulling_words,
    significant,
    ties_words,
    unit,
)
from gwa_offline.figures.displays import GWACurveDisplay
from gwa_offline.figures.interactive import make_figures

FINITE = st.floats(1e-300, 1e6) | st.floats(1e-9, 1.0)


@given(FINITE, st.integers(1, 4), st.booleans())
def test_a_number_keeps_its_digits_at_any_scale(value, digits, negative):
    value = -value if negative else value
    text = significant(value, digits)
    # Half a unit of the last place, of a number that has as many decimals, or digits.
    assert abs(float(text) - value) <= 0.51 * min(
        10.0**-digits, 10.0 ** (1 - digits) * abs(value)
    ) or (abs(value) >= 0.1 and abs(float(text) - value) <= 0.51 * 10.0**-digits)
    assert float(text) != 0.0 or abs(value) >= 0.1
    assert text.isascii()
    assert significant(value, digits, sign="+") == (text if negative else "+" + text)


@given(st.floats(1e-8, 0.5), st.booleans())
def test_a_label_quality_keeps_its_distance_from_one_half(distance, below):
    quality = 0.5 - distance if below else 0.5 + distance
    shown = float(significant(quality, around=0.5)) - 0.5
    assert shown == pytest.approx(quality - 0.5, rel=6e-3, abs=1e-12)


def test_numbers_are_written_as_people_read_them():
    values = (0.0, 0.37184, -0.0043, 4.3e-7, 12.0, np.float32(0.25), None, np.nan, np.inf)
    shown = ["0.000", "0.372", "-0.00430", "4.30e-07", "12.000", "0.250", "-", "-", "-"]
    assert [significant(value) for value in values] == shown
    assert [percent(x) for x in (0.0, 0.102, 3e-6, 1.0)] == [
        "0.0 %",
        "10.2 %",
        "0.0003 %",
        "100.0 %",
    ]
    assert [percent(x) for x in (None, np.nan)] == ["-", "-"]
    assert percent(0.9, 0) == "90 %"
    assert format_number(-0.0043) == "\N{MINUS SIGN}0.00430"
    assert format_number(4.3e-7) == "4.30e\N{MINUS SIGN}07"
    assert format_number(1234567) == "1,234,567"
    assert format_number(None) == format_number(np.nan) == "–"
    assert format_number(0.49912, around=0.5) == "0.499120"


def windows(report):
    """The same report, each record the end of a window."""
    records = [
        replace(record, summary=record.summary._replace(window=100)) for record in report.epochs
    ]
    return replace(report, epochs=tuple(records))


def test_windows_are_counted_in_steps():
    epochs, report = make_report(), windows(make_report())
    assert (unit(epochs.epochs), unit(report.epochs)) == ("epoch", "step")
    assert epoch_numbers(report) == [100 * number for number in epoch_numbers(epochs)]
    assert position(report.epochs[BEST].summary) == 100 * BEST
    assert average_sentence(epochs).startswith("Or average the weights: epochs ")
    assert average_sentence(report).startswith("Or average the weights: steps ")
    messages = messages_of(report.epochs, observed(report.epochs), MaxSeparation(), BEST)
    assert any(f"1 of 20 windows (step {100 * SICK})" in text for text in messages)
    assert any("would keep step" in text for text in messages)


def test_windows_are_steps_on_the_page_and_in_the_figures(tmp_path):
    report = windows(make_report(messages=(), selection=Selection(BEST, 0.5, "largest")))
    page = report.to_html(tmp_path / "r.html").read_text(encoding="utf-8")
    near = f"{100 * BEST - 200} to {100 * BEST + 200} are about as good"
    assert f"or step {100 * BEST}; {near}." in page
    assert "<dt>Windows</dt><dd>20 (steps 0 to 1900)</dd>" in page
    text = page[page.index("<main") : page.index('<script type="application/json"')]
    assert "epoch" not in text.replace("data-best-epoch", "")
    figures = make_figures(report)
    assert figures["curve"].layout.xaxis.title.text == "step"
    assert list(figures["distribution"].data[0].x) == epoch_numbers(report)
    ax = GWACurveDisplay.from_report(report).plot().ax_
    assert ax.get_xlabel() == "step"
    # A bar reaches over the steps of its window.
    assert ax.patches[0].get_width() == 80


def test_near_ties_in_words():
    def words(*places, **changes):
        report = make_report()
        tied = np.isin(np.arange(len(report.epochs)), [BEST, *places])
        decision = replace(report.decision, tied=tied, **changes)
        return ties_words(replace(report, decision=decision))

    assert BEST == 13
    assert words() == "no other epoch is within its error"
    assert words(12) == "epoch 12 is about as good"
    assert words(12, 14) == "12 to 14 are about as good"
    assert words(14, 15) == "14 and 15 are about as good"
    assert words(14, 15, 16) == "14 to 16 are about as good"
    assert words(2, 5, 6, 7, 12) == "2, 5 to 7 and 12 are about as good"
    assert words(1, 3, 5, 7, 9) == "5 others from 1 to 13 are about as good"
    assert words(12, standard_errors=np.full(20, np.nan)) is None
    assert ties_words(replace(make_report(), best_index=None)) is None
    assert ties_words(make_report(1)) is None


def test_labels_that_pull_in_words_and_by_class():
    report = make_report()
    low = report.label_quality < 0.5
    assert pulling(report).tolist() == low.tolist()
    assert pulling_words(report) == f"{low.sum()} of 299 labels pull against the model"
    unlabelled = replace(report, targets=None)
    assert pulling_words(unlabelled).split()[3] == "samples"
    assert pulling_words(replace(report, label_quality=np.full(300, np.nan))) is None
    quality = np.where(np.arange(300) == 4, 0.4, 0.6)
    alone = replace(report, label_quality=quality)
    assert pulling_words(alone) == "1 of 300 labels pulls against the model"
    rows = class_rows(report, 10)
    assert class_rows(report, 2) == rows[:2]
    assert [row.mean for row in rows] == sorted(report.class_mean[BEST])
    for row in rows:
        mask = report.targets == report.class_names.index(row.name)
        assert (row.size, row.pulling) == (mask.sum(), (mask & low).sum())
    assert class_rows(unlabelled, 10) == []


def edge_messages(values, rule, total=None):
    """What is said of a run whose separation and accuracy are these."""
    records = [
        replace(
            record,
            summary=record.summary._replace(separation=value, epoch=epoch),
            metrics={"accuracy": value, "error": -value},
        )
        for epoch, (record, value) in enumerate(zip(make_report().epochs, values, strict=False))
    ]
    rows = [{**row, "separation": x} for row, x in zip(observed(records), values, strict=True)]
    best = select_epoch(rows, rule, total_steps=total).step
    said = messages_of(records, rows, rule, best, total_steps=total)
    return [text for text in said if "no peak" in text]


FALLING = [0.1, 0.2, *(0.9 - 0.02 * t for t in range(18))]


@pytest.mark.parametrize(
    ("values", "rule", "total", "said"),
    [
        (FALLING, MaxSeparation(), None, True),
        (FALLING, BestMetric(metric="accuracy", warmup=2), None, True),
        (FALLING, BestMetric(metric="error", mode="min", warmup=2), None, True),
        # Nobody warmed up, little came afterwards, or more epochs were planned.
        (FALLING, MaxSeparation(warmup=0), None, False),
        (FALLING[:6], MaxSeparation(warmup=2), None, False),
        ([*FALLING[:4], *FALLING[2:18]], MaxSeparation(), 40, True),
        # The best one comes later.
        ([*FALLING[:10], *[0.95] * 10], MaxSeparation(), None, False),
        # A later one is better, but patience or a margin did not wait for it.
        ([*FALLING[:10], *[0.95] * 10], MaxSeparation(patience=3), None, False),
        ([*FALLING[:10], *[0.95] * 10], MaxSeparation(min_delta=0.5), None, False),
    ],
)
def test_the_first_epoch_after_the_warm_up_is_said_to_be_no_peak(values, rule, total, said):
    found = edge_messages(values, rule, total)
    assert len(found) == said
    if said:
        first = 4 if total else 2
        signal = rule.signal
        assert found[0].startswith(f"Epoch {first} is the first after the warm-up, and no later")
        assert f"a better {signal}: this is no peak" in found[0]
