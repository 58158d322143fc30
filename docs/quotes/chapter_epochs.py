"""Sentences of the results chapter: rules that stop, and what the scores depend on."""

from __future__ import annotations

from collections.abc import Callable

from . import completion, epochs, trials

__all__ = ["CHECKED", "QUOTES"]

STOPPING = "docs/results/stopping.md"

#: Of each page: what gives the numbers, and a sentence with places for them.
QUOTES: tuple[tuple[str, Callable[[], dict[str, str]], str], ...] = (
    (STOPPING, epochs.large, "largest separation loses {separation} points on average, {separation_worst} at worst, the last epoch {last} and {last_worst}"),
    (STOPPING, epochs.with_averages, "the last epoch {last}. Without one run under asymmetric errors, where separation loses {far} points, it is {rest}. In {small_runs} of small ones it is {small}"),
    (STOPPING, completion.rules, "With 1,000 classes, {runs} runs of a small network"),
    (STOPPING, completion.rules, "word completion, {runs} runs"),
    (STOPPING, epochs.paper_networks, "the last epoch of the ConvNeXt loses at most {convnext} points, and that of the ViT {vit}"),
    (STOPPING, epochs.paper_networks, "keeps that memorised end and loses {end} points with the {seeds} seeds, as LabelWave does. Largest separation loses {separation} on average, {worst} at most"),
    (STOPPING, epochs.paper_networks, "keep an epoch near the best one and still lose {near} points, the last epoch {far}"),
    (STOPPING, epochs.paper_networks, "{right} points lost by the ConvNeXt on right labels, {coarse} by the coarse network under 9 %"),
    (STOPPING, epochs.paper_networks, "it changes nothing, and both lose {both}"),
    (STOPPING, epochs.paper_networks, "by {disparity} points in the paper's networks. The paper has it {theirs} below GWA"),
    (STOPPING, epochs.medians, "in {none} more the largest GWA keeps none. The formula of separation was found on the {chosen} runs of the last column"),
    (STOPPING, epochs.medians, "All {runs} runs on CIFAR-10-N. The median loss is {separation} points for separation, {bimodality} for bimodality, {paper} for the paper's rule, {waits} for LabelWave and the last epoch"),
    (STOPPING, epochs.medians, "Separation keeps as good an epoch as bimodality in {same} runs, a better one in {better}, a worse one in {worse} (by {most} at most)"),
    (STOPPING, epochs.medians, "Up to 17 % ({few} runs) separation loses {few_separation}, bimodality {few_bimodality}, the paper's rule and the last epoch {few_rest}; under 40 % ({many} runs) {lost}"),
    (STOPPING, epochs.medians, "The {later} runs made after it became the default"),
    (STOPPING, epochs.medians, "it is not (medians {medians})"),
    (STOPPING, epochs.variants, "in the coarse network, {runs} runs that memorise little: separation, the paper's rule and the last epoch lose {three}. Under mixup and 40 % errors LabelWave keeps epoch {epoch} and loses {wave} points"),
    (STOPPING, epochs.variants, "{made} runs of the coarse network: under 20 and 40 % symmetric ones separation loses {any_separation} points, bimodality {any_bimodality}, the last epoch {any_last}"),
    (STOPPING, epochs.variants, "it keeps the memorised end and loses {end}, as the paper's rule does; bimodality loses {one_bimodality}, LabelWave {one_wave}"),
    (STOPPING, epochs.small, "All {runs} runs on CIFAR-10-N and texts, made after it became the default: separation, the paper's rule, LabelWave and the fifth increase lose {four} points, bimodality {bimodality}, the last epoch {last}"),
    (STOPPING, epochs.small, "({other} runs): separation loses {other_separation} points, bimodality {other_bimodality}, both {two_worst} at worst. The paper's rule loses {other_paper} ({other_paper_worst})"),
    (STOPPING, epochs.small, "LabelWave {other_wave} ({other_wave_worst}), the last epoch {other_last} ({other_last_worst})"),
    (STOPPING, epochs.small, "separation and bimodality lose {little} points under 20 %, and {much} under 40 %. The paper's rule loses {one_paper}, LabelWave {one_wave}, the last epoch {one_last}"),
    (STOPPING, epochs.small, "the networks know most in epochs {best}, mostly of 61"),
    (STOPPING, epochs.small, "With mixup or weight decay ({mixup_runs} runs) separation loses {mixup}. With half the training ({half_runs} runs) it loses {half}, the last epoch {half_last}"),
    (STOPPING, epochs.fashion, "The share of negative scores is still {negative} % in the last epoch, which loses at most {calm_last} points. The rules of the scores keep epochs {epochs} and lose {calm}"),
    (STOPPING, epochs.fashion, "test accuracy falls by {falls} points, by {falls_constant} at a constant rate"),
    (STOPPING, epochs.fashion, "In the worst run the last epoch loses {worst_last} points, the rules of the scores {worst}, LabelWave {worst_wave}. In another, accuracy is {jumps} % in epochs {first} to {third}: separation keeps epoch {first}, bimodality {second}"),
    (STOPPING, epochs.fashion, "GWA keeps no epoch in {none} of {many} runs"),
    (STOPPING, epochs.fashion, "Separation loses {separation} points, bimodality {bimodality}, the last epoch {last}, and {last_constant} at a constant rate"),
    (STOPPING, epochs.constant, "{runs} runs: on Fashion-MNIST, texts and CIFAR-10-N separation loses {separation} points. LabelWave loses {wave}, the paper's rule {paper}, the last epoch {last}. In \"conv\", whose accuracy falls by {falls} points, separation loses {conv_separation}, LabelWave {conv_wave}"),
    (STOPPING, epochs.default, "Bimodality alone loses {whole} and, on 90 %, {part} points in the ConvNeXt on right labels"),
    (STOPPING, epochs.default, "it keeps epoch {epoch} and loses {sgd}. Separation loses {separation} in these runs"),
    (STOPPING, trials.validation, "Large networks, {pairs} pairs. In the ConvNeXt separation is {right} points ahead on right labels, equal under 9 %, {seventeen} ahead under 17 % and {forty} under 40 %. In the ViT it is equal under 17 % and {vit} behind under 40 %"),
    (STOPPING, trials.validation, "equal to the validation set on average: {last_far} behind in the ConvNeXt under 40 %, {last_rest} ahead over the other {others}, where separation is {rest} ahead as well"),
    (STOPPING, trials.validation, "The coarse network has {coarse} pairs more: {few} and, under 40 %, −{many}"),
    (STOPPING, trials.small_validation, "Separation is {texts} point ahead on right labels and under symmetric errors, {all} in all {pairs} pairs. The last epoch is {last} behind. Under asymmetric errors separation is {one_way} behind"),
    (STOPPING, trials.small_validation, "Separation is {images} (CIFAR-10-N) and {fashion} (Fashion-MNIST) behind, although the tenth of the data is worth {worth} points there"),
    (STOPPING, trials.one_size, "Of {runs} runs separation is ahead of it in {rule_ahead}, by {rule_by} points, and behind in {rule_behind}, by up to {rule_worst}. GWA is ahead in {paper_ahead}, equal in {paper_equal} and behind in {paper_behind}, by {paper_spread}"),
    (STOPPING, trials.five_epochs, "would lose {best} points over the {runs} runs (median {median}, in one run {worst})"),
    (STOPPING, trials.five_epochs, "What is left is {left} points. The worst case is {left_worst}, in the coarse network under 40 %, where separation comes {late} epochs late"),
    (STOPPING, trials.loss_after, "this loss is smallest loses more than separation in {worse} of {runs} runs"),
    (STOPPING, trials.apart, "before accuracy is best: {convnext} epochs in the ConvNeXt, {coarse} in the coarse network, in the median"),
    (STOPPING, trials.tried, "Points lost on the {runs} runs above, where separation loses {separation}"),
    (STOPPING, trials.tried, "over three, five and seven epochs: {means}"),
    (STOPPING, trials.tried, "The first value within 0.5, 1 and 2 % of the largest: {near}"),
    (STOPPING, trials.tried, "1/8, 1/3, 1/2 and 1: {powers}"),
    (STOPPING, trials.tried, "{squared_chosen} on the {chosen} runs separation was found on, {squared} on the others, {squared_worst} at worst"),
    (STOPPING, trials.tried, "in units of the scores' spread: {units}. The smallest skewness: {skewness}"),
    (STOPPING, trials.tried, "{fewest} in the ConvNeXt under 40 %, and up to {fewest_asymmetric} in small networks"),
    (STOPPING, trials.tried, "{bounded} in place of {bounded_usual} on texts under asymmetric errors, {bounded_other} in place of {bounded_other_usual} on the others"),
    (STOPPING, trials.tried, "{positive} on Fashion-MNIST, as bimodality alone with {positive_bimodality}, and separation {positive_usual}. In \"conv\" under 17 % it loses {positive_conv}"),
)  # fmt: skip
#: Pages of which each number is quoted or defined.
CHECKED: tuple[str, ...] = (STOPPING,)
