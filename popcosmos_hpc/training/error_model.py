r"""Flux errors of simulated surveys, from published formulae: training tables where no catalog is at hand.

Two kinds of survey are known. **Gaussian apertures** (GAaP; Kuijken 2008, A&A 482, 1053): of an image with a
Gaussian PSF of standard deviation p, the flux in an aperture q is that seen through a Gaussian weight of
:math:`w^2 = q^2 - p^2`, times :math:`q^2 / w^2`, so white noise gives it the error

.. math:: \sigma = \sigma_{2''} \frac{q^2}{w \cdot 1''} ,

with :math:`\sigma_{2''}` the error in a top hat of 2 arcsec diameter, whose area is pi square arcsec. The
aperture grows with the galaxy as in KiDS (Kuijken et al. 2015, MNRAS 454, 3500): its rms size on the
detection image and a smallest aperture are added in quadrature. To the sky the galaxy's own photons are
added. **Many visits** (Ivezic et al. 2019, arXiv:0805.2366, eqs. 4 and 5): for a point source of one visit

.. math:: \sigma_1^2 / F^2 = (0.04 - \gamma) x + \gamma x^2 , \qquad x = F_5 / F ,

divided by the number of visits; the area that an optimal measurement of a galaxy weighs, and with it the
sky's part, is larger than that of a star by :math:`1 + (2 r_h / \theta)^2`, the ratio for Gaussian profiles.

Galaxy sizes are the disc scale lengths of Miller et al. (2013, MNRAS 429, 2858), of which the median falls
with magnitude. All errors of a galaxy share its size, all galaxies of a pointing its noise and seeing.
"""

import math
from typing import NamedTuple

import numpy as np

from popcosmos_hpc.errors import ConfigurationError, TrainingError
from popcosmos_hpc.photometry import AB_ZERO_POINT
from popcosmos_hpc.survey.canonical import numbers
from popcosmos_hpc.survey.readers import table_reader
from popcosmos_hpc.training.noise_recipe import GaapSource, Galaxies, RubinSource, input_file

_FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))
_HALF_LIGHT = 1.678  # half-light radius of an exponential disc, in scale lengths
_RMS = math.sqrt(3.0)  # its rms size along an axis, in scale lengths
_MEDIAN_GAMMA = 1.1830  # median of a Gamma(3/2) variable
_LARGEST_LENGTH = 3.0  # arcsec: the formula's tail would have galaxies larger than the apertures
_COLOURS = (-1.0, 2.5)  # mag between neighbouring bands; beyond are no galaxies, and few rows per magnitude
_WEAKEST_WEIGHT = 0.2  # least w / q: an aperture hardly wider than the PSF is enlarged instead


class Errors(NamedTuple):
    """Noiseless fluxes and their errors, (galaxy, band) [nanomaggies]."""

    flux: np.ndarray
    flux_err: np.ndarray


def simulate_errors(source: GaapSource | RubinSource, seed: int) -> Errors:
    """Fluxes and errors of a simulated survey.

    Raises:
        ConfigurationError: a band or column that is named does not exist.
        TrainingError: the table of pointings holds no usable row.
    """
    rng = np.random.default_rng([seed, 7])
    bands = tuple(source.bands)
    named = [source.galaxies.reference, *([source.detection] if isinstance(source, GaapSource) else [])]
    if strange := [band for band in named if band not in bands]:
        raise ConfigurationError(
            f"bands among {', '.join(bands)}",
            ", ".join(strange),
            "source",
            "Correct `galaxies.reference` or `detection`.",
        )
    magnitude = galaxy_magnitudes(source.galaxies, bands, rng)
    length = scale_length(magnitude[:, bands.index(source.galaxies.reference)], rng)
    flux = 10 ** (0.4 * (AB_ZERO_POINT - magnitude))
    if isinstance(source, GaapSource):
        return Errors(flux, _gaap(source, flux, length, rng))
    return Errors(flux, _rubin(source, flux, length, rng))


def galaxy_magnitudes(galaxies: Galaxies, bands: tuple[str, ...], rng: np.random.Generator) -> np.ndarray:
    """AB magnitudes (galaxy, band); infinite where a galaxy has no light."""
    reference = bands.index(galaxies.reference)
    magnitude = rng.uniform(*galaxies.magnitude, galaxies.number)
    steps = galaxies.colour + galaxies.colour_scatter * rng.standard_t(4, (galaxies.number, len(bands) - 1))
    steps = np.clip(steps, *_COLOURS)
    redward = np.concatenate([np.zeros((galaxies.number, 1)), np.cumsum(steps, axis=1)], axis=1)
    magnitudes = magnitude[:, None] - (redward - redward[:, [reference]])
    faint = magnitude > np.mean(galaxies.magnitude)
    dark = faint & (rng.random(galaxies.number) < galaxies.no_light)
    edge = rng.integers(1, reference + 1, galaxies.number) if reference else np.zeros(galaxies.number, int)
    return np.where(dark[:, None] & (np.arange(len(bands)) < edge[:, None]), np.inf, magnitudes)


def scale_length(magnitude: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Disc scale lengths (galaxy,) [arcsec] for magnitudes near 0.75 micrometres.

    Miller et al. (2013): p(r) ~ r exp(-(r/a)^(4/3)), with a median of exp(-1.145 - 0.269 (i - 23)).
    """
    median = np.exp(-1.145 - 0.269 * (magnitude - 23.0))
    spread = (rng.gamma(1.5, size=len(magnitude)) / _MEDIAN_GAMMA) ** 0.75
    return np.minimum(median * spread, _LARGEST_LENGTH)


def _gaap(source: GaapSource, flux: np.ndarray, length: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    bands = list(source.bands.values())
    noise, seeing = _pointings(source, len(flux), rng)
    psf = seeing / _FWHM
    seen = psf[:, [list(source.bands).index(source.detection)]] ** 2 + (_RMS * length[:, None]) ** 2
    aperture = np.minimum(np.sqrt(source.aperture**2 + seen), source.largest_aperture)
    aperture = np.maximum(aperture, psf / math.sqrt(1 - _WEAKEST_WEIGHT**2))
    weight = np.sqrt(aperture**2 - psf**2)
    depth = np.array([band.depth for band in bands])
    local = np.exp(source.local_scatter * rng.standard_normal(flux.shape))
    sky = 0.2 * 10 ** (0.4 * (AB_ZERO_POINT - depth)) * noise * local * aperture**2 / weight
    photons = flux / np.array([band.electrons for band in bands])
    zero_point = 10 ** (0.4 * source.zero_point_scatter * rng.standard_normal(flux.shape))
    return np.sqrt(sky**2 + photons) * zero_point


def _pointings(source: GaapSource, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sky noise relative to the median and seeing [arcsec], (galaxy, band) each, of smoothed pointings."""
    bands = source.bands.values()
    columns = tuple(band.noise for band in bands) + tuple(band.seeing for band in bands)
    path = input_file(source.pointings)
    reader = table_reader(path)
    if missing := [name for name in columns if name not in reader.columns(path)]:
        raise ConfigurationError(
            "columns of the pointings",
            ", ".join(missing),
            str(path),
            "Correct `noise` and `seeing` of the bands.",
        )
    chunks = [chunk.table for chunk in reader.chunks(path, tuple(dict.fromkeys(columns)), 100_000)]
    values = [np.concatenate([numbers(table[name]) for table in chunks]) for name in columns]
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(np.stack(values, axis=1))
    logs = logs[np.all(np.isfinite(logs), axis=1)]
    if len(logs) < 2:
        raise TrainingError(
            "at least two pointings of positive noise and seeing",
            str(len(logs)),
            str(path),
            "Give more of them.",
        )
    mean, spread = logs.mean(axis=0), logs - logs.mean(axis=0)
    # A kernel of the pointings' own covariance, and shrinking, keep mean and covariance as they are.
    factor = np.linalg.cholesky(np.cov(spread, rowvar=False, bias=True) + 1e-12 * np.eye(len(columns)))
    kernel = rng.standard_normal((number, len(columns))) @ factor.T
    share = source.smoothing
    drawn = mean + math.sqrt(1 - share**2) * spread[rng.integers(0, len(logs), number)] + share * kernel
    noise, seeing = np.split(drawn, 2, axis=1)
    return np.exp(noise - np.median(logs[:, : noise.shape[1]], axis=0)), np.exp(seeing)


def _rubin(source: RubinSource, flux: np.ndarray, length: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    bands = list(source.bands.values())
    depth, visits, gamma, seeing = (
        np.array([getattr(band, name) for band in bands]) for name in ("depth", "visits", "gamma", "seeing")
    )
    shared = math.sqrt(source.depth_correlation) * rng.standard_normal((len(flux), 1))
    own = math.sqrt(1 - source.depth_correlation) * rng.standard_normal(flux.shape)
    limit = 10 ** (0.4 * (AB_ZERO_POINT - depth - source.depth_scatter * (shared + own))) * np.sqrt(visits)
    area = 1 + (2 * _HALF_LIGHT * length[:, None] / seeing) ** 2
    variance = ((0.04 - gamma) * limit * flux + gamma * limit**2 * area) / visits
    return np.sqrt(variance + (source.systematic * flux) ** 2)
