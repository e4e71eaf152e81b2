"""One line per number that the report shows."""

from collections.abc import Sequence

from atlantis.report.words import METRIC_DEFINITIONS, metric_title

_REPORT_DEFINITIONS = {
    "interval": "Square brackets hold an interval at the stated level; a value keeps only the "
    "digits that its interval supports (first significant digit of the half-width, two if a 1).",
    "versus": "Paired difference, this arm minus the other, on the same test examples; better: the "
    "whole interval is above zero; worse: below; else no difference is shown.",
    "unparsed": "Share of generated answers that are none of the labels, mean over seeds.",
    "weight": "What multiplies an example's loss; 1 is the average.",
    "ESS, ESS/N": "Effective sample size (sum w)² / sum w²: as many equally weighted examples "
    "carry as much; N is the number of weighted examples.",
    "kappa": "Power at which the log weights were tempered; 1 is untempered.",
    "largest share": "Share of all weight on the heaviest example.",
    "share of top 1 %": "Share of all weight on the heaviest hundredth of the examples.",
    "Pareto k": "Tail index of the weights; above 0.7 averages under these weights are unreliable.",
    "Spearman, length": "Rank correlation of weight and completion length.",
    "clipped low, clipped high": "Share of examples whose weight was raised or cut to a bound.",
    "AUROC": "Probability that a wrong label is ranked as more suspicious than a right one; ties "
    "count half; 0.5 is chance.",
    "average precision": "Mean precision at each wrong label found; chance is the wrong share.",
    "precision at the true number": "Share of wrong labels among as many top-ranked rows as labels "
    "are wrong; ties in random order.",
    "log p": "Natural log of the probability of the whole completion under the large model L, the "
    "small S, or the reference r; per token: divided by the number of tokens.",
}


def definitions(metrics: Sequence[str]) -> list[dict[str, str]]:
    """Titles and definitions: of the given metrics where known, then of the report's numbers."""
    of_metrics = {
        metric_title(metric): METRIC_DEFINITIONS[metric]
        for metric in metrics
        if metric in METRIC_DEFINITIONS
    }
    return [
        {"title": title, "text": text} for title, text in (of_metrics | _REPORT_DEFINITIONS).items()
    ]
