"""Sentences of the results chapter: wrong labels and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable

from . import errors, tuning

__all__ = ["CHECKED", "QUOTES"]

LABELS, TUNING = "docs/results/labels.md", "docs/results/fine-tuning.md"

#: Of each page: what gives the numbers, and a sentence with places for them.
QUOTES: tuple[tuple[str, Callable[[], dict[str, str]], str], ...] = (
    (LABELS, errors.beside_aum, "in all {runs} runs of large networks on human errors"),
    (LABELS, errors.small, "and in {won} of {human_runs} of small ones"),
    (LABELS, errors.one_way, "in {lost} of {runs} runs of large networks on images it is {behind} below AUM"),
    (LABELS, errors.beside_aum, "is ahead by {coarse_aggre_100} under 9 % ({coarse_aggre_90} on 90 % of the data), {coarse_random1_100} under 17 and {coarse_worse_100} under 40 %"),
    (LABELS, errors.beside_aum, "With RandAugment, mixup or weight decay it is ahead by {regularised}"),
    (LABELS, errors.beside_aum, "In {kept_runs} shorter trainings of {networks} networks, made for the average under 40 %, it is ahead by {kept}"),
    (LABELS, errors.beside_aum, "In the ViT it is ahead by {vit_random1_100} under 17 % and {vit_worse} under 40 % (twice)"),
    (LABELS, errors.beside_aum, "it is ahead by {convnext_aggre_90} under 9 % (on 90 %), {convnext_random1_100} and {convnext_worse_100}"),
    (LABELS, errors.others, "it is first in {first} of the {runs} runs of large networks, by {most} at most. In the others it is {least} at most below the best. The best of the other signals is `el2n` in {el2n} runs"),
    (LABELS, errors.cleanlab, "five trainings of {short} epochs that cross-validation takes, it has {own_aggre}, {own_random1} and {own_worse} on the rows that are trained on. cleanlab has {held_aggre}, {held_random1} and {held_worse} on those that are not. The plain mean has {plain_aggre}, {plain_random1} and {plain_worse}. In one training of {epochs} epochs label_quality has {whole_aggre}, {whole_random1} and {whole_worse}"),
    (LABELS, errors.cleanlab, "level under 9 %, {area_aggre} and {held_area_aggre}. Elsewhere label_quality is ahead by less: {area_random1} and {area_worse} to {held_area_random1} and {held_area_worse}"),
    (LABELS, errors.by_chance, "{symmetric_20} and {symmetric_40} above AUM where they are symmetric, {asymmetric_20} below it"),
    (LABELS, errors.by_chance, "for the average have {kept_symmetric} above AUM, and {kept_asymmetric} below it"),
    (LABELS, errors.further, "weights find nearly all: {minilm} by excess bimodality, AUM {minilm_aum}"),
    (LABELS, errors.further, "In texts it has {texts}, the plain mean {texts_mean}. On Fashion-MNIST it has {fashion}, the plain mean {fashion_mean}"),
    (LABELS, errors.small, "in all {same} runs of small networks that have them they are the plain mean. In {near_runs} more, on texts under symmetric errors and on human ones, they are within {near} of it"),
    (LABELS, errors.small, "they lose {excess} on texts under symmetric errors: {excess_range} in {both_runs} runs"),
    (LABELS, errors.small, "has {both} under symmetric errors on average, {both_range} in {both_runs} runs. Under asymmetric ones it has {one}, {one_range} in {one_runs} runs"),
    (LABELS, errors.small, "it has {human}, {human_range} in {human_runs} runs. In the {usual_runs} trainings of more than 50 epochs without mixup that is {usual}, in the other {others_runs} {others}"),
    (LABELS, errors.further, "far ahead: {growing}, AUM {aum}"),
    (TUNING, tuning.whole, "Rules lost up to {worst} points in trainings of {epochs} epochs"),
    (TUNING, tuning.windows, "In Lite0 it is highest after {highest} of 3 epochs, and {lower} % lower at the end"),
    (TUNING, tuning.windows, "GWA is highest after {minilm_highest} epochs and then falls"),
    (TUNING, tuning.windows, "Their kurtosis is {kurtosis} in the first window and {kurtosis_end} in the last"),
    (TUNING, tuning.windows, "In Lite0 it stops after {wave} epochs"),
    (TUNING, tuning.whole, "Both lose up to {lite_dip} points, separation {lite_rule}, the last epoch {lite_last}"),
    (TUNING, tuning.whole, "memorises the wrong labels, down to {memorised} % under 40 % errors"),
    (TUNING, tuning.whole, "near zero at first, {begins}, and grows to {denominator} at least"),
    (TUNING, tuning.whole, "the fine-tuning rule loses {dip} points, separation {rule}, LabelWave {wave}, bimodality {modes}"),
)  # fmt: skip
#: Pages of which each number is quoted or defined.
CHECKED: tuple[str, ...] = (LABELS, TUNING)
