"""Published measurements of the galaxy population that a population is compared with.

Masses and rates are for a Chabrier IMF; those of papers with a Salpeter IMF are converted where they are
used. Curves that are also ingredients of the reference population come from `training.galaxy_relations`.
"""

from typing import NamedTuple

import numpy as np

SALPETER_TO_CHABRIER = 0.63  # of star formation rates, Madau & Dickinson 2014, section 3.1.2


class MassFunctionBin(NamedTuple):
    """Number densities in a redshift bin.

    Attributes:
        low: lower redshift.
        high: upper redshift.
        points: (point, 4) log10 mass [Msun], density, and its one-sigma limits [per dex and Mpc^3].
    """

    low: float
    high: float
    points: np.ndarray


def _bin(low: float, high: float, scale: float, rows: tuple) -> MassFunctionBin:
    points = np.array(rows, float)
    points[:, 1:] *= scale
    return MassFunctionBin(low, high, points)


# Weaver et al. 2023 (arXiv:2212.02512), COSMOS2020 Farmer, all galaxies, every second bin of mass.
MASS_FUNCTIONS = (
    _bin(0.2, 0.5, 1e-4, (
        (8.375, 203.6, 170.6, 236.5), (8.875, 128.9, 107.6, 150.1), (9.375, 73.19, 60.82, 85.56),
        (9.875, 44.79, 36.74, 52.83), (10.375, 32.06, 25.59, 38.53), (10.875, 16.68, 12.63, 20.73),
        (11.125, 8.166, 5.916, 10.42), (11.375, 2.154, 1.433, 2.875), (11.625, 0.551, 0.301, 0.801),
    )),
    _bin(0.8, 1.1, 1e-4, (
        (8.625, 112.2, 98.3, 126.0), (9.125, 82.77, 72.55, 92.99), (9.625, 53.39, 46.60, 60.17),
        (10.125, 36.00, 30.87, 41.12), (10.625, 26.24, 21.57, 30.91), (10.875, 18.80, 14.92, 22.67),
        (11.125, 8.798, 6.654, 10.94), (11.375, 2.965, 2.093, 3.836), (11.625, 0.574, 0.359, 0.789),
    )),
    _bin(1.5, 2.0, 1e-4, (
        (9.125, 48.38, 43.68, 53.09), (9.625, 27.26, 24.47, 30.04), (10.125, 16.27, 14.29, 18.25),
        (10.625, 11.90, 9.931, 13.87), (10.875, 8.254, 6.602, 9.907), (11.125, 3.586, 2.703, 4.468),
        (11.375, 1.205, 0.836, 1.574), (11.625, 0.167, 0.098, 0.235),
    )),
    _bin(2.5, 3.0, 1e-4, (
        (9.375, 32.76, 28.51, 37.02), (9.875, 14.89, 12.59, 17.19), (10.375, 7.012, 5.537, 8.487),
        (10.625, 4.476, 3.335, 5.617), (10.875, 2.457, 1.687, 3.227), (11.125, 1.128, 0.690, 1.567),
        (11.375, 0.369, 0.189, 0.551), (11.625, 0.0896, 0.0332, 0.146),
    )),
    _bin(3.5, 4.5, 1e-4, (
        (9.625, 10.62, 8.871, 12.37), (9.875, 5.984, 4.854, 7.114), (10.125, 3.353, 2.609, 4.098),
        (10.375, 1.722, 1.263, 2.180), (10.625, 0.964, 0.653, 1.275), (10.875, 0.549, 0.333, 0.765),
        (11.125, 0.366, 0.190, 0.541), (11.375, 0.139, 0.0570, 0.222),
    )),
    _bin(4.5, 5.5, 1e-4, (
        (9.625, 4.093, 3.096, 5.089), (9.875, 3.408, 2.442, 4.375), (10.125, 1.909, 1.268, 2.551),
        (10.375, 0.901, 0.538, 1.264), (10.625, 0.294, 0.150, 0.438), (10.875, 0.139, 0.0563, 0.222),
        (11.125, 0.149, 0.0438, 0.253), (11.375, 0.0840, 0.0128, 0.155),
    )),
)  # fmt: skip

# Koprowski et al. 2026 (COSMOS-Web): mean redshift, log10 mass, log10 SFR and its error, stacked infrared
# plus ultraviolet light of mass-complete star-forming galaxies.
SEQUENCE_POINTS = np.array(
    [
        (0.79, 8.59, -0.647, 0.111), (0.81, 9.33, 0.175, 0.016), (0.82, 10.07, 0.841, 0.006),
        (0.83, 10.73, 1.093, 0.008), (1.23, 8.60, -0.286, 0.146), (1.23, 9.32, 0.405, 0.028),
        (1.24, 10.06, 0.987, 0.011), (1.25, 10.76, 1.358, 0.012), (1.75, 8.58, -0.402, 0.122),
        (1.73, 9.32, 0.652, 0.030), (1.71, 10.05, 1.318, 0.012), (1.70, 10.76, 1.630, 0.011),
        (2.44, 9.32, 0.911, 0.045), (2.46, 10.06, 1.535, 0.014), (2.44, 10.77, 1.902, 0.016),
        (3.84, 9.29, 0.702, 0.084), (3.65, 10.04, 1.664, 0.037), (3.46, 10.76, 2.208, 0.025),
    ]
)  # fmt: skip

# Curti et al. 2020 (arXiv:1910.00597), medians of SDSS in bins of mass, read off their figure:
# log10 mass, 12 + log10(O/H), 16 and 84 percent.
OXYGEN_POINTS = np.array(
    [
        (7.96, 8.149, 7.990, 8.319), (8.39, 8.330, 8.239, 8.432), (8.71, 8.443, 8.358, 8.533),
        (9.00, 8.524, 8.441, 8.605), (9.31, 8.580, 8.497, 8.667), (9.61, 8.648, 8.565, 8.722),
        (9.91, 8.708, 8.629, 8.784), (10.22, 8.748, 8.693, 8.806), (10.51, 8.782, 8.729, 8.823),
        (10.80, 8.795, 8.749, 8.844), (11.11, 8.796, 8.751, 8.844), (11.42, 8.785, 8.734, 8.843),
    ]
)  # fmt: skip


def distant_oxygen(log_mass: np.ndarray, redshift: float) -> np.ndarray:
    """12 + log10(O/H) of Sanders et al. 2021 (arXiv:2009.07292): 8.51 at 10^10 Msun and z = 2.3.

    Slope 0.30 with log mass, -0.11 per unit of redshift to 3.3; measured for 9 < log10 M < 10.7.
    """
    return 8.51 + 0.30 * (log_mass - 10.0) - 0.11 * (redshift - 2.3)


# Cullen et al. 2019 (arXiv:1903.11081): log10 mass and Z/Zsun of star-forming galaxies at 2.5 < z < 5; the
# first is an upper limit.
YOUNG_METALLICITIES = ((8.5, 0.09), (10.23, 0.27))

# Madau & Dickinson 2014 (arXiv:1403.0007), Table 1, Salpeter IMF: lower and upper redshift, log10 of SFR
# density [Msun/yr/Mpc^3], errors up and down; one of its surveys per line of code.
_ULTRAVIOLET = (
    (0.01, 0.1, -1.82, 0.09, 0.02), (0.2, 0.4, -1.50, 0.05, 0.05), (0.4, 0.6, -1.39, 0.15, 0.08),
    (0.6, 0.8, -1.20, 0.31, 0.13), (0.8, 1.2, -1.25, 0.31, 0.13), (0.05, 0.05, -1.77, 0.08, 0.09),
    (0.05, 0.2, -1.75, 0.18, 0.18), (0.2, 0.4, -1.55, 0.12, 0.12), (0.4, 0.6, -1.44, 0.10, 0.10),
    (0.6, 0.8, -1.24, 0.10, 0.10), (0.8, 1.0, -0.99, 0.09, 0.08), (1.0, 1.2, -0.94, 0.09, 0.09),
    (1.2, 1.7, -0.95, 0.15, 0.08), (1.7, 2.5, -0.75, 0.49, 0.09), (2.5, 3.5, -1.04, 0.26, 0.15),
    (3.5, 4.5, -1.69, 0.22, 0.32), (0.92, 1.33, -1.02, 0.08, 0.08), (1.62, 1.88, -0.75, 0.12, 0.12),
    (2.08, 2.37, -0.87, 0.09, 0.09), (1.9, 2.7, -0.75, 0.09, 0.11), (2.7, 3.4, -0.97, 0.11, 0.15),
    (3.8, 3.8, -1.29, 0.05, 0.05), (4.9, 4.9, -1.42, 0.06, 0.06), (5.9, 5.9, -1.65, 0.08, 0.08),
)  # fmt: skip
_INFRARED = (
    (0.03, 0.03, -1.72, 0.02, 0.03), (0.03, 0.03, -1.95, 0.20, 0.20), (0.40, 0.70, -1.34, 0.22, 0.11),
    (0.70, 1.00, -0.96, 0.15, 0.19), (1.00, 1.30, -0.89, 0.27, 0.21), (1.30, 1.80, -0.91, 0.17, 0.21),
    (1.80, 2.30, -0.89, 0.21, 0.25), (0.40, 0.70, -1.22, 0.08, 0.11), (0.70, 1.00, -1.10, 0.10, 0.13),
    (1.00, 1.30, -0.96, 0.13, 0.20), (1.30, 1.80, -0.94, 0.13, 0.18), (1.80, 2.30, -0.80, 0.18, 0.15),
    (0.00, 0.30, -1.64, 0.09, 0.11), (0.30, 0.45, -1.42, 0.03, 0.04), (0.45, 0.60, -1.32, 0.05, 0.05),
    (0.60, 0.80, -1.14, 0.06, 0.06), (0.80, 1.00, -0.94, 0.05, 0.06), (1.00, 1.20, -0.81, 0.04, 0.05),
    (1.20, 1.70, -0.84, 0.04, 0.04), (1.70, 2.00, -0.86, 0.02, 0.03), (2.00, 2.50, -0.91, 0.09, 0.12),
    (2.50, 3.00, -0.86, 0.15, 0.23), (3.00, 4.20, -1.36, 0.23, 0.50),
)  # fmt: skip
COSMIC_RATE_POINTS = {"ultraviolet": np.array(_ULTRAVIOLET), "infrared": np.array(_INFRARED)}


def cosmic_rate(redshift: np.ndarray) -> np.ndarray:
    """SFR density of Madau & Dickinson 2014, eq. 15, for a Chabrier IMF [Msun/yr/Mpc^3]."""
    salpeter = 0.015 * (1 + redshift) ** 2.7 / (1 + ((1 + redshift) / 2.9) ** 5.6)
    return SALPETER_TO_CHABRIER * salpeter


def counts(magnitude: float) -> float:
    """Galaxies per arcmin^2 brighter than an i magnitude: LSST Science Book (arXiv:0912.0201), eq. 3.7."""
    return 46.0 * 10 ** (0.31 * (magnitude - 25.0))


def redshift_scale(magnitude: float) -> float:
    """z0 of the redshifts of galaxies brighter than an i magnitude; their mean is 3 z0 (same, eq. 3.8)."""
    return 0.0417 * magnitude - 0.744


def redshift_distribution(redshift: np.ndarray, magnitude: float) -> np.ndarray:
    """p(z) of galaxies brighter than an i magnitude from 20.5 to 25 (same, eq. 3.9)."""
    scale = redshift_scale(magnitude)
    return 0.5 / scale * (redshift / scale) ** 2 * np.exp(-redshift / scale)


# 3D-HST: masses above which it is complete (Tal et al. 2014, on the mass scale of Leja et al. 2020).
COMPLETE_3DHST = ((0.65, 1.0, 1.5, 2.1, 3.0), (8.87, 9.07, 9.63, 9.89, 10.15))
