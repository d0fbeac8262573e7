"""Numbers that judge estimates against truth: pure NumPy functions with bootstrap errors."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

NORMAL_MAD = 1.4826  # sigma / MAD of a normal distribution
NORMAL_IQR = 1.349  # IQR / sigma of a normal distribution
OUTLIER = 0.15
RAIL_OUTLIER = 0.06
_BOOTSTRAP_CHUNK = 2_000_000  # resampled values held at once


Statistic = np.ndarray | np.floating


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float

    def __format__(self, spec: str) -> str:
        """Value ± error, both under one format.

        >>> f"{Estimate(0.02114, 0.0005):.4f}"
        '0.0211 ± 0.0005'
        """
        if not np.isfinite(self.value):
            return "n/a"
        return f"{format(self.value, spec)} ± {format(self.error, spec)}"


class PointMetrics(NamedTuple):
    """How well point estimates of redshift agree with known redshifts.

    Attributes:
        n: galaxies.
        bias: median of dz = (z_phot - z_spec) / (1 + z_spec).
        sigma_mad: 1.4826 median |dz - median dz|.
        outliers: fraction with |dz| > 0.15.
        sigma_iqr: interquartile range of dz / 1.349, the width used by RAIL.
        rail_outliers: fraction with |dz| > max(0.06, 3 sigma_iqr), as in RAIL.
    """

    n: int
    bias: Estimate
    sigma_mad: Estimate
    outliers: Estimate
    sigma_iqr: Estimate
    rail_outliers: Estimate


def scaled_residual(estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Redshift residual (z_phot - z_spec) / (1 + z_spec), shape of the inputs."""
    return (np.asarray(estimate, float) - truth) / (1.0 + np.asarray(truth, float))


def bias(dz: np.ndarray) -> Statistic:
    """Median of dz along the last axis."""
    return np.median(dz, axis=-1)


def sigma_mad(dz: np.ndarray) -> Statistic:
    """Scaled median absolute deviation from the median, along the last axis."""
    return NORMAL_MAD * np.median(np.abs(dz - np.median(dz, axis=-1, keepdims=True)), axis=-1)


def outlier_fraction(dz: np.ndarray, threshold: float = OUTLIER) -> Statistic:
    """Fraction of |dz| above a threshold, along the last axis."""
    return np.mean(np.abs(dz) > threshold, axis=-1)


def sigma_iqr(dz: np.ndarray) -> Statistic:
    """Interquartile range over that of a standard normal, along the last axis."""
    low, high = np.quantile(dz, (0.25, 0.75), axis=-1)
    return (high - low) / NORMAL_IQR


def rail_outlier_fraction(dz: np.ndarray) -> Statistic:
    """Fraction of |dz| above max(0.06, 3 sigma_iqr), along the last axis."""
    threshold = np.maximum(RAIL_OUTLIER, 3.0 * sigma_iqr(dz))
    return np.mean(np.abs(dz) > threshold[..., None], axis=-1)


def bootstrap_error(
    values: np.ndarray, statistic: Callable[[np.ndarray], Statistic], resamples: int = 200, seed: int = 0
) -> float:
    """Standard deviation of a statistic over resamples of the data.

    Args:
        values: (n,) data.
        statistic: maps (resample, n) to (resample,).
        resamples: how many.
        seed: of the resampling; the same seed gives the same error.

    Returns:
        The error; NaN for fewer than two values.
    """
    values = np.asarray(values, float)
    if values.size < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    rows = max(1, min(resamples, _BOOTSTRAP_CHUNK // values.size))
    drawn = [
        statistic(values[rng.integers(0, values.size, (min(rows, resamples - start), values.size))])
        for start in range(0, resamples, rows)
    ]
    return float(np.std(np.concatenate(drawn), ddof=1))


def point_metrics(
    estimate: np.ndarray, truth: np.ndarray, resamples: int = 200, seed: int = 0
) -> PointMetrics:
    """Point metrics with bootstrap errors; non-finite pairs are left out.

    Args:
        estimate: (n,) estimated redshifts.
        truth: (n,) known redshifts.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    dz = scaled_residual(estimate, truth)
    dz = dz[np.isfinite(dz)]
    nan = Estimate(float("nan"), float("nan"))
    if dz.size == 0:
        return PointMetrics(0, nan, nan, nan, nan, nan)

    def estimated(statistic) -> Estimate:
        return Estimate(float(statistic(dz)), bootstrap_error(dz, statistic, resamples, seed))

    statistics = (bias, sigma_mad, outlier_fraction, sigma_iqr, rail_outlier_fraction)
    return PointMetrics(int(dz.size), *(estimated(statistic) for statistic in statistics))


def binned_point_metrics(
    estimate: np.ndarray, truth: np.ndarray, by: np.ndarray, edges: np.ndarray, minimum: int = 10
) -> list[tuple[float, float, PointMetrics]]:
    """Point metrics in bins of another quantity: (lower edge, upper edge, metrics) per bin.

    Args:
        estimate: (n,) estimated redshifts.
        truth: (n,) known redshifts.
        by: (n,) what to bin by, such as a magnitude.
        edges: (bin + 1,) bin edges; a bin holds lower <= by < upper.
        minimum: bins with fewer galaxies are left out.
    """
    rows = []
    for low, high in pairwise(edges):
        inside = (by >= low) & (by < high)
        if np.count_nonzero(inside) >= minimum:
            rows.append((float(low), float(high), point_metrics(estimate[inside], truth[inside])))
    return rows


def cdf_of_quantiles(quantiles: np.ndarray, levels: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Cumulative distributions given by quantiles, evaluated at points common to all of them.

    Between quantiles the CDF is linear. Probability outside the first and last level is put at
    the first and last quantile.

    Args:
        quantiles: (galaxy, level) nondecreasing along the last axis.
        levels: (level,) in [0, 1], increasing.
        at: (point,) where to evaluate.

    Returns:
        (galaxy, point) in [0, 1].
    """
    total = np.where(at[None, :] >= quantiles[:, :1], levels[0], 0.0)
    for index in range(len(levels) - 1):
        low, width = quantiles[:, index], np.maximum(quantiles[:, index + 1] - quantiles[:, index], 1e-12)
        part = np.clip((at[None, :] - low[:, None]) / width[:, None], 0.0, 1.0)
        total = total + part * (levels[index + 1] - levels[index])
    return total + np.where(at[None, :] > quantiles[:, -1:], 1.0 - levels[-1], 0.0)


def stacked_density(quantiles: np.ndarray, levels: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Sum of the galaxies' distributions in bins: expected counts, (bin,).

    Args:
        quantiles: (galaxy, level); galaxies with a non-finite quantile are left out.
        levels: (level,) in [0, 1].
        edges: (bin + 1,) bin edges.
    """
    finite = quantiles[np.all(np.isfinite(quantiles), axis=1)].astype(float)
    counts = np.zeros(len(edges) - 1)
    for start in range(0, len(finite), 10_000):
        cdf = cdf_of_quantiles(finite[start : start + 10_000], levels, edges)
        counts += np.diff(cdf, axis=1).sum(axis=0)
    return counts


def pit_values(quantiles: np.ndarray, levels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Probability integral transform: the posterior's CDF at the truth, (galaxy,).

    A truth outside the outermost quantiles gets the middle of the probability left there.
    """
    quantiles, truth = np.asarray(quantiles, float), np.asarray(truth, float)
    pit = np.array([np.interp(t, q, levels) for t, q in zip(truth, quantiles, strict=True)], float)
    pit = np.where(truth < quantiles[:, 0], levels[0] / 2, pit)
    pit = np.where(truth > quantiles[:, -1], (1 + levels[-1]) / 2, pit)
    return np.where(np.isfinite(truth) & np.all(np.isfinite(quantiles), axis=1), pit, np.nan)


def coverage(pit: np.ndarray, probability: float) -> Estimate:
    """Fraction of truths within the central interval of a given probability, with its error."""
    pit = pit[np.isfinite(pit)]
    if pit.size == 0:
        return Estimate(float("nan"), float("nan"))
    inside = float(np.mean(np.abs(pit - 0.5) <= probability / 2))
    return Estimate(inside, float(np.sqrt(inside * (1 - inside) / pit.size)))


def ks_uniform(pit: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of PIT values from the uniform distribution."""
    ordered = np.sort(pit[np.isfinite(pit)])
    if ordered.size == 0:
        return float("nan")
    steps = np.arange(ordered.size + 1) / ordered.size
    return float(max(np.max(steps[1:] - ordered), np.max(ordered - steps[:-1])))


def offset_and_scatter(
    estimate: np.ndarray, truth: np.ndarray, seed: int = 0
) -> tuple[int, Estimate, Estimate]:
    """Number, median offset and scaled MAD of `estimate - truth`, with bootstrap errors."""
    difference = np.asarray(estimate, float) - truth
    difference = difference[np.isfinite(difference)]
    if difference.size == 0:
        nan = Estimate(float("nan"), float("nan"))
        return 0, nan, nan
    offset = Estimate(float(bias(difference)), bootstrap_error(difference, bias, seed=seed))
    scatter = Estimate(float(sigma_mad(difference)), bootstrap_error(difference, sigma_mad, seed=seed))
    return int(difference.size), offset, scatter


def share(chosen: np.ndarray) -> Estimate:
    """Fraction of True among booleans, with its binomial error."""
    if chosen.size == 0:
        return Estimate(float("nan"), float("nan"))
    value = float(np.mean(chosen))
    return Estimate(value, float(np.sqrt(value * (1 - value) / chosen.size)))
