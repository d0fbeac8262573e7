"""Random star-formation histories in age bins that form a given mass at a given present rate."""

from typing import NamedTuple

import numpy as np

from popcosmos_hpc.training.galaxy_relations import age_of_universe

_YOUNG = 0.1  # Gyr over which the present rate is averaged; the first two bins end here
_N_BINS = 7
_LATEST_START = 0.12  # of the age of the universe; the oldest bin, from 0.85 on, is never empty
_FAST_START = 0.25  # largest rate at the start, in units of its linear rise until today
_KAPPA = (-250.0, 60.0)
_STEPS = 38  # halvings of that interval: 1e-9
_CEILING = 1.1  # of sSFR x 100 Myr: all stars formed within 100 Myr give about 1.2
_RATIO_LIMIT = 4.9


class Histories(NamedTuple):
    """Drawn histories.

    Attributes:
        ratios: (n, 6) log10 of SFR_i / SFR_(i+1), young to old.
        surviving: (n,) mass in stars and remnants today per mass formed.
    """

    ratios: np.ndarray
    surviving: np.ndarray


def bin_edges(redshift: np.ndarray) -> np.ndarray:
    """Lookback-time edges (n, 8) [Gyr]: those of `sps.star_formation.bin_edges`, for many galaxies."""
    age = age_of_universe(redshift)
    low, high = np.log10(_YOUNG), np.log10(0.85 * age)
    middle = 10 ** (low + np.linspace(0.0, 1.0, _N_BINS - 2) * (high - low)[:, None])
    return np.column_stack([np.zeros_like(age), np.full_like(age, 0.03), middle, age])


def surviving_fraction(edges: np.ndarray) -> np.ndarray:
    """Mass left of a unit of mass formed, mean over each bin (n, bin).

    Behroozi et al. 2013 (arXiv:1207.6105), eq. 14: the fraction lost after t is
    0.05 ln(1 + t / 1.4 Myr), for a Chabrier IMF and the stars of Bruzual & Charlot 2003.
    """
    scale = 1.4e-3
    primitive = (edges + scale) * np.log1p(edges / scale) - edges
    return 1 - 0.05 * np.diff(primitive, axis=1) / np.diff(edges, axis=1)


def _formed(position: np.ndarray, kappa: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Mass formed up to a position in [0, 1] of the history (s + start) exp(-kappa s), of the total."""
    small = np.abs(kappa) < 1e-3
    safe = np.where(small, 1.0, kappa)
    # Divided by exp(-min(kappa, 0)), which keeps rising histories in range.
    scale = np.minimum(safe, 0.0)
    constant = np.exp(scale) * (1 + start * safe)
    part = constant - np.exp(scale - safe * position) * (1 + safe * (position + start))
    whole = constant - np.exp(scale - safe) * (1 + safe * (1 + start))
    flat = (0.5 * position**2 + start * position) / (0.5 + start)
    return np.where(small, flat, part / whole)


def _steepness(young_share: np.ndarray, young_length: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Kappa of the history of `_formed` whose last `young_length` forms `young_share` of its mass."""
    low, high = np.full_like(young_share, _KAPPA[0]), np.full_like(young_share, _KAPPA[1])
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        too_young = 1 - _formed(1 - young_length, middle, start) > young_share
        low, high = np.where(too_young, middle, low), np.where(too_young, high, middle)
    return 0.5 * (low + high)


def _base_masses(
    rng: np.random.Generator, edges: np.ndarray, log_ssfr: np.ndarray, surviving: np.ndarray
) -> np.ndarray:
    """Mass fractions (n, bin) of smooth histories with about the given long-term specific rate."""
    n, age = len(edges), edges[:, -1]
    length = age * (1 - rng.uniform(0.0, _LATEST_START, n))
    share = np.clip(10 ** (log_ssfr + 8.0) * surviving, 1e-4, 0.6)
    start = rng.uniform(0.0, _FAST_START, n)
    kappa = _steepness(share, _YOUNG / length, start)
    position = np.clip(1 - edges / length[:, None], 0.0, 1.0)
    return np.maximum(-np.diff(_formed(position, kappa[:, None], start[:, None]), axis=1), 1e-7)


def _bursts(rng: np.random.Generator, n: int, scatter: np.ndarray) -> np.ndarray:
    """Correlated log-normal factors (n, bin): neighbouring bins share half of their variance."""
    steps = rng.standard_normal((n, _N_BINS))
    for index in range(1, _N_BINS):
        steps[:, index] = 0.5 * steps[:, index - 1] + np.sqrt(0.75) * steps[:, index]
    return 10 ** (scatter[:, None] * steps)


def _overlap(edges: np.ndarray, until: np.ndarray) -> np.ndarray:
    """Fraction of each bin (n, bin) that is younger than a lookback time (n,) [Gyr]."""
    return np.clip((until[:, None] - edges[:, :-1]) / np.diff(edges, axis=1), 0.0, 1.0)


def draw_histories(
    rng: np.random.Generator,
    redshift: np.ndarray,
    log_ssfr: np.ndarray,
    long_term_log_ssfr: np.ndarray,
    quiescent: np.ndarray,
    scatter: np.ndarray,
) -> Histories:
    """Histories whose rate over the last 100 Myr and surviving mass are exactly as asked for.

    A smooth history (s + s0) exp(-kappa s), s from 0 at the start to 1 today, rises and then
    declines (or only rises, kappa < 0); kappa follows from the long-term specific rate: in quiescent
    galaxies, that of the sequence which they have left. Random factors per bin stand for bursts
    (Caplar & Tacchella 2019, Iyer et al. 2020). Then the rate of the last time is scaled by a factor S,
    and by its root in a time before, so that the present specific rate comes out exactly. For
    star-forming galaxies the two times are the last 100 Myr and the bin before; quiescent galaxies
    leave the sequence at a lookback time uniform in 0.15 Gyr to 0.75 of the age of the universe, and
    reach their low rate in two steps.

    Args:
        rng: the random stream.
        redshift: (n,).
        log_ssfr: (n,) log10 of SFR over 100 Myr per surviving mass [1/yr].
        long_term_log_ssfr: (n,) the same on the scale of the age of the universe.
        quiescent: (n,) True for galaxies that have stopped.
        scatter: (n,) [dex] of the rate from bin to bin.
    """
    n, edges = len(redshift), bin_edges(redshift)
    left = surviving_fraction(edges)
    masses = _base_masses(rng, edges, long_term_log_ssfr, left[:, 3]) * _bursts(rng, n, scatter)
    age = edges[:, -1]
    stopped = 0.15 + (0.75 * age - 0.15) * rng.uniform(size=n)
    low_since = _YOUNG + (stopped - _YOUNG) * rng.uniform(size=n)
    until = np.where(quiescent, low_since, _YOUNG)
    since = np.where(quiescent, stopped, edges[:, 3])
    scaled = _overlap(edges, until)
    halfway = _overlap(edges, since) - scaled
    factor = _factor(masses, masses * left, log_ssfr, scaled, halfway)[:, None]
    masses = masses * (scaled * factor**2 + halfway * factor + 1 - scaled - halfway)
    log_rate = np.log10(masses / np.diff(edges, axis=1))
    ratios = np.clip(-np.diff(log_rate, axis=1), -_RATIO_LIMIT, _RATIO_LIMIT)
    return Histories(ratios, _surviving(ratios, edges, left))


def _factor(masses, surviving, log_ssfr, scaled, halfway) -> np.ndarray:
    """Root of the factor S (n,) that brings the specific rate of 100 Myr to its value.

    With g = sSFR x 100 Myr, young mass = g x surviving mass is a quadratic in that root.
    """
    wanted = 10 ** (log_ssfr + 8.0)
    # More than all stars cannot be younger than 100 Myr; approach the ceiling smoothly.
    wanted = wanted * (1 + (wanted / _CEILING) ** 4) ** -0.25
    a = masses[:, :2].sum(1) - wanted * (surviving * scaled).sum(1)
    b = wanted * (surviving * halfway).sum(1)
    c = wanted * (surviving * (1 - scaled - halfway)).sum(1)
    return (b + np.sqrt(b**2 + 4 * np.maximum(a, 1e-12) * c)) / (2 * np.maximum(a, 1e-12))


def _surviving(ratios: np.ndarray, edges: np.ndarray, left: np.ndarray) -> np.ndarray:
    log_rate = -np.concatenate([np.zeros((len(ratios), 1)), np.cumsum(ratios, axis=1)], axis=1)
    masses = 10 ** (log_rate - log_rate.max(1, keepdims=True)) * np.diff(edges, axis=1)
    return (masses * left).sum(1) / masses.sum(1)
