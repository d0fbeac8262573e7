"""How far two sets of draws are apart: widths, means, correlations, and a classifier."""

import importlib.util
from typing import Any

import numpy as np


def compare_draws(drawn: np.ndarray, truth: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """Differences between draws of a model and held-out ones, in the truth's standard deviations.

    Args:
        drawn: (draw, param).
        truth: (draw, param).
        names: of the parameters.

    Returns:
        Largest shift of a mean, largest departure of a width from 1 (between the 16th and 84th
        percentiles, and of the standard deviation), largest difference of a correlation, each with the
        parameter at fault, the share of draws beyond the truth's farthest, and the accuracy of a
        classifier (0.5 is a perfect model; None without scikit-learn).
    """
    width = truth.std(axis=0)
    shift = np.abs(drawn.mean(axis=0) - truth.mean(axis=0)) / width
    spread = np.abs(_half_width(drawn) / _half_width(truth) - 1)
    deviation = np.abs(drawn.std(axis=0) / width - 1)
    correlation = np.abs(np.corrcoef(drawn.T) - np.corrcoef(truth.T))
    first, second = np.unravel_index(int(correlation.argmax()), correlation.shape)
    low, high = truth.min(axis=0), truth.max(axis=0)
    room = 0.1 * (high - low)
    outside = np.any((drawn < low - room) | (drawn > high + room), axis=1)
    named = lambda values: {"value": round(float(values.max()), 4), "parameter": names[int(values.argmax())]}  # noqa: E731
    return {
        "mean_shift": named(shift),
        "width_68": named(spread),
        "standard_deviation": named(deviation),
        "correlation": {
            "value": round(float(correlation.max()), 4), "parameter": f"{names[first]}, {names[second]}",
        },
        "outside": round(float(outside.mean()), 6),
        "classifier_accuracy": classifier_accuracy(drawn, truth),
        "n_draws": [len(drawn), len(truth)],
    }  # fmt: skip


def _half_width(draws: np.ndarray) -> np.ndarray:
    low, high = np.percentile(draws, [16, 84], axis=0)
    return high - low


def classifier_accuracy(first: np.ndarray, second: np.ndarray, seed: int = 0) -> float | None:
    """Accuracy of gradient-boosted trees that tell two sets of draws apart, on a held-out half.

    A classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv:1610.06545). None without scikit-learn.
    """
    if importlib.util.find_spec("sklearn") is None:
        return None
    from sklearn.ensemble import HistGradientBoostingClassifier

    draws = np.concatenate([first, second])
    label = np.repeat([0, 1], [len(first), len(second)])
    order = np.random.default_rng(seed).permutation(len(draws))
    half = len(order) // 2
    trees = HistGradientBoostingClassifier(max_iter=200, random_state=seed)
    trees.fit(draws[order[:half]], label[order[:half]])
    return round(float(trees.score(draws[order[half:]], label[order[half:]])), 4)
