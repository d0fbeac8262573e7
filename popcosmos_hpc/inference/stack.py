r"""Stacks of many posteriors from one pool, with errors that know that the pool is shared.

All galaxies take their draws from the same pool, so their Monte Carlo errors are correlated: a stack of G
galaxies is never better than about M / 1.2 independent draws, M the size of the pool, however large G is.
Errors per galaxy added in quadrature miss that. The pool consists of sub-pools of independent draws; leaving
out one after another gives the error of the stack (the jack-knife).
"""

from typing import NamedTuple

import numpy as np


class Stack(NamedTuple):
    """A stacked histogram.

    Attributes:
        density: (bin,) mean over galaxies of the probability in each bin.
        error: (bin,) Monte Carlo error by the jack-knife; NaN where no draw comes from a pool.
        independent_error: (bin,) what the error would be if galaxies had pools of their own.
        n_galaxies: galaxies in it.
    """

    density: np.ndarray
    error: np.ndarray
    independent_error: np.ndarray
    n_galaxies: int


def stack_histogram(
    values: np.ndarray, sub_pool: np.ndarray, edges: np.ndarray, ess: np.ndarray, n_sub_pools: int = 16
) -> Stack:
    """Stack posteriors into a histogram.

    The error is that of the Monte Carlo draws alone, not that of the sample of galaxies.

    Args:
        values: (galaxy, draw) of one quantity; galaxies with NaN are left out.
        sub_pool: (galaxy, draw) sub-pool of each draw, -1 for draws from no pool, which are never left out.
        edges: (bin + 1,).
        ess: (galaxy,) effective sizes.
        n_sub_pools: sub-pools of the pool.
    """
    good = np.isfinite(values).all(1)
    values, sub_pool, ess = values[good], sub_pool[good], ess[good]
    n_galaxies, n_bins = len(values), len(edges) - 1
    if n_galaxies == 0:
        nothing = np.full(n_bins, np.nan)
        return Stack(nothing, nothing, nothing, 0)
    inside = np.searchsorted(edges, values, side="right") - 1
    inside = np.where((inside < 0) | (inside >= n_bins), n_bins, inside)
    probability = _histograms(inside, np.ones(values.shape), n_bins)
    without = np.stack(
        [_histograms(inside, sub_pool != index, n_bins).mean(0) for index in range(n_sub_pools)]
    )
    spread = (n_sub_pools - 1) / n_sub_pools * np.sum((without - without.mean(0)) ** 2, axis=0)
    error = np.sqrt(spread) if np.any(sub_pool >= 0) else np.full(n_bins, np.nan)
    variance = probability * (1 - probability) / np.maximum(ess, 1.0)[:, None]
    return Stack(probability.mean(0), error, np.sqrt(variance.sum(0)) / n_galaxies, n_galaxies)


def _histograms(inside: np.ndarray, weight: np.ndarray, n_bins: int) -> np.ndarray:
    """Probability (galaxy, bin) of each galaxy's draws that have weight; bin n_bins is outside."""
    n_galaxies = len(inside)
    flat = inside + (n_bins + 1) * np.arange(n_galaxies)[:, None]
    counts = np.bincount(flat.ravel(), weight.ravel().astype(float), n_galaxies * (n_bins + 1))
    total = np.maximum(weight.sum(1), 1)[:, None]
    return counts.reshape(n_galaxies, n_bins + 1)[:, :n_bins] / total
