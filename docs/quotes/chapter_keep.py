"""Sentences of the results chapter: what to keep, language models, published numbers."""

from __future__ import annotations

from collections.abc import Callable

from . import averages, benchmarks, completion, kept, languages, published, ranking

__all__ = ["CHECKED", "QUOTES"]

INDEX, AVERAGING, LANGUAGE, PUBLISHED = (
    f"docs/results/{page}.md" for page in ("index", "averaging", "language", "published")
)

#: Of each page: what gives the numbers, and a sentence with places for them.
QUOTES: tuple[tuple[str, Callable[[], dict[str, str]], str], ...] = (
    (INDEX, kept.twins, "Only {all} runs have such a twin. The last row is the average in these {all}"),
    (INDEX, ranking.quality, "in {won} of {human} runs of large networks on human errors, in {won_small} of {human_small} of small ones"),
    (INDEX, kept.encoder, "Under symmetric errors the encoder on texts loses {symmetric} points by every rule and mean of the table, and {validation} with a validation set"),
    (INDEX, published.beside, "Under 40 % of them separation loses {separation_asymmetric} points in a ResNet-18, where it keeps an early epoch"),
    (INDEX, kept.asymmetric, "It loses up to {small_rule} points in small networks"),
    (INDEX, benchmarks.rules, "({whole_worst} on a part of Fashion-MNIST)"),
    (INDEX, kept.asymmetric, "and {encoder_rule} in the encoder under 20 %"),
    (INDEX, published.beside, "The average is {average_asymmetric} points above the best epoch in that ResNet-18"),
    (INDEX, kept.asymmetric, "It loses up to {small} points in small networks, and {encoder} in the encoder"),
    (INDEX, kept.small, "Largest separation loses up to {rule_worst} points and is behind the last epoch on average. The average loses up to {average_worst}"),
    (INDEX, completion.averages, "points, the average {average_40}. Bimodality"),
    (INDEX, completion.rules, "Bimodality loses {modes_worst}"),
    (INDEX, kept.pole, "Under 40 % symmetric errors the paper's rule loses up to {worst} points in a large network"),
    (INDEX, kept.fine_tuned, "Separation loses {whole} points in MiniLM under 40 % errors in 20 epochs, and {windows} in four"),
    (AVERAGING, kept.steps, "Its last value is {mean} above the best epoch on average, and {worst} below it in the worst run"),
    (AVERAGING, kept.steps, "Whoever knows the test accuracy gets {best} out of it. On right labels its last value is {right} ahead of the average"),
    (AVERAGING, kept.encoder, "the fifth is {fifth} points lower"),
    (AVERAGING, kept.encoder, "Without a warm-up the same average loses {at_once} points there, and the EMA at its best epoch {steps}"),
    (AVERAGING, kept.small, "(right labels: {separation})"),
    (AVERAGING, averages.worst_cases, "and loses {convolutions} points"),
    (AVERAGING, kept.small, "The perceptron, which memorises, gains {perceptron} where errors are not asymmetric"),
    (AVERAGING, kept.asymmetric, "largest in the fifth epoch in small networks, where the warm-up ends, and in the {first} to {last} of {epochs} in large ones"),
    (AVERAGING, kept.asymmetric, "The average is {mean_large} points above the best epoch in large networks on images, and {mean_small} below it in small ones"),
    (AVERAGING, kept.twins, "there are {all} twins, {small} of them of small networks"),
    (AVERAGING, kept.twins, "The average is {above_images} points ahead in two runs of a large network on images, {above_texts} behind in the encoder, and {above_small} ahead in the small ones"),
    (AVERAGING, kept.others, "a power of 20, another warm-up and the steps within an epoch are within {level} points of the default"),
    (AVERAGING, kept.others, "it has {spread} points too"),
    (AVERAGING, kept.others, "In the {chose} runs of the choice the best mean is {better} points ahead of the default"),
    (AVERAGING, kept.others, "needs one more copy of the weights, and moves the mean of a column by {within} points at most"),
    (AVERAGING, kept.others, "Powers of GWA alone lose up to {gwa} points in a large network"),
    (LANGUAGE, languages.setting, "A decoder of {weights} million weights"),
    (LANGUAGE, languages.setting, "{wrong} % of the {answers} training answers are wrong"),
    (LANGUAGE, languages.setting, "20 epochs of {steps} steps, and one epoch of {once} steps, with {seeds} seeds each"),
    (LANGUAGE, languages.setting, "A random order has {random}"),
    (LANGUAGE, averages.examples, "The default, `reduce=\"mean\"`, has {mean}"),
    (LANGUAGE, languages.answers, "the mean of `\"min\"` and the loss of the third epoch both reach {third}"),
    (LANGUAGE, languages.answers, "Then EL2N, averaged over the epochs, is best ({last}), and GWA's best is {last_gwa}"),
    (LANGUAGE, languages.all_tokens, "finds garbled answers ({garbled} in one epoch; the best other signal has {garbled_other})"),
    (LANGUAGE, languages.all_tokens, "forgetting has {swapped} after three epochs"),
    (LANGUAGE, languages.kept, "is as good as the best epoch on garbled answers ({garbled_average}), and {swapped_average} worse on swapped ones"),
    (LANGUAGE, languages.kept, "The largest separation keeps a later epoch ({garbled_separation} and {swapped_separation})"),
    (LANGUAGE, languages.kept, "the network overfits after {best} of 20 epochs"),
    (LANGUAGE, languages.kept, "The largest separation by `\"min\"` is nearest ({nearest}), the default by `\"mean\"` is far off ({far}), the last epoch has {end}"),
    (LANGUAGE, languages.kept, "The average by `\"mean\"` is {average} above the best epoch"),
    (LANGUAGE, languages.kept, "is within {plain} of the best on answers and {plain_all} above it on all tokens"),
    (PUBLISHED, published.beside, "the average of the weights is {behind} points below what LabelWave's paper has"),
    (PUBLISHED, published.settings, "a constant rate of {rate}, batches of {batch} and a weight decay of {decay}"),
    (PUBLISHED, published.settings, "| these runs | ResNet-18 | 50,000; {epochs}; {rate} |"),
    (PUBLISHED, published.beside, "The average is {average} points above the best epoch that anybody could pick, under symmetric errors"),
    (PUBLISHED, published.beside, "within {steps} points of the exponential mean of the steps at its best epoch"),
    (PUBLISHED, published.beside, "after its warm-up and loses {separation_asymmetric} points. The average is {average_asymmetric} points above the best epoch"),
    (PUBLISHED, published.beside, "from one epoch to the next the accuracy moves by up to {jump} points"),
    (PUBLISHED, published.beside, "is {wave} points below the best epoch under 40 % symmetric errors. In its paper it is {their_wave} below"),
    (PUBLISHED, published.beside, "is {co_teaching} points below the average under 20 % symmetric errors"),
)  # fmt: skip
#: Pages of which each number is quoted or defined.
CHECKED: tuple[str, ...] = (INDEX, AVERAGING, LANGUAGE, PUBLISHED)
