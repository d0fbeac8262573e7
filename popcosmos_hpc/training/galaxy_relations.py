"""Published scaling relations of galaxies: what the reference population is made of.

Every function gives the centre (and where published the width) of one relation, vectorised over
galaxies. Masses are surviving stellar masses, as in the papers. What happens outside the range in which
a relation was measured stands in its docstring.
"""

from typing import Any

import numpy as np
from astropy.cosmology import Planck18

_COSMOLOGY: Any = Planck18  # astropy declares no type for it
SOLAR_OXYGEN = 8.69  # 12 + log10(O/H) of the Sun, Asplund et al. 2009

# Leja et al. 2022 (arXiv:2110.04314), Table 1: ridge of the density, polynomials in redshift
# (constant term first) for the slopes above and below the break, the level and the break.
_RIDGE = {
    "above": (0.03746, 0.3448, -0.1156),
    "below": (0.9605, 0.04990, -0.05984),
    "level": (0.2516, 1.118, -0.2006),
    "break": (10.22, 0.3826, -0.04491),
}
_RIDGE_REDSHIFTS = (0.2, 2.7)
# Masses above which their samples are complete, on their mass scale (Laigle et al. 2016, Tal et al. 2014).
_RIDGE_COMPLETE = ((0.2, 0.65, 1.0, 1.5, 2.1, 3.0), (8.60, 8.87, 9.07, 9.63, 9.89, 10.15))
# Popesso et al. 2023 (arXiv:2203.10487), eq. 14: a0 to a4; 0 < z < 6, 8.5 < log10 M < 11.5.
_POPESSO = (2.693, -0.186, 10.85, -0.0729, 0.99)

# Koprowski et al. 2026 (COSMOS-Web), quiescent fraction: medians of the published chains, a exp(b z) + c.
_QUIESCENT = {
    "height": (2.9047, -1.6496, 0.1680),
    "centre": (5.7315, -1.8484, 10.9375),
    "width": (2.2680, -1.4382, 0.5122),
}
_QUIESCENT_REDSHIFTS, _QUIESCENT_MASSES = (0.5, 5.0), (9.0, 12.0)

# Gallazzi et al. 2005 (astro-ph/0506539), Table 2 with masses for a Chabrier IMF:
# log10 mass, then the 50, 16 and 84 percent points of log10 Z/Zsun.
GALLAZZI = np.array(
    [
        (8.87, -0.60, -1.11, 0.00), (9.07, -0.61, -1.07, 0.00), (9.27, -0.65, -1.10, -0.05),
        (9.47, -0.61, -1.03, -0.01), (9.68, -0.52, -0.97, 0.05), (9.87, -0.41, -0.90, 0.09),
        (10.07, -0.23, -0.80, 0.14), (10.27, -0.11, -0.65, 0.17), (10.47, -0.01, -0.41, 0.20),
        (10.68, 0.04, -0.24, 0.22), (10.87, 0.07, -0.14, 0.24), (11.07, 0.10, -0.09, 0.25),
        (11.27, 0.12, -0.06, 0.26), (11.47, 0.13, -0.04, 0.28), (11.68, 0.14, -0.03, 0.29),
        (11.87, 0.15, -0.03, 0.30),
    ]
)  # fmt: skip
_DWARF_SLOPE = 0.30  # Kirby et al. 2013 (arXiv:1310.0814): [Fe/H] of dwarf galaxies per dex of mass
_YOUNG_OFFSET, _YOUNG_REDSHIFT = -0.6, 3.5  # Cullen et al. 2019 (arXiv:1903.11081)

# Curti et al. 2020 (arXiv:1910.00597), eq. 5: Z0, m0, m1, gamma, beta.
_CURTI = (8.779, 10.11, 0.56, 0.31, 2.1)
_CURTI_SFR, _CURTI_MASS = (-1.0, 2.0), 8.0

# Garn & Best 2010 (arXiv:0911.3664), eq. 5: A(H alpha) [mag], median over local star-forming galaxies.
_GARN_BEST = (-0.09, 0.11, 0.77, 0.91)
_GARN_BEST_MASSES = (8.66, 11.96)
# A(H alpha) per unit of dust2, birth clouds as deep as the diffuse dust: 1.086 (0.81 + 0.84).
_HALPHA_PER_DEPTH = 1.79
# Salim et al. 2018 (arXiv:1804.05850), Table 1: R_V of log10 M = 9, 10, 11 is 2.61, 2.99, 3.47.
_SLOPE_DEPTHS, _SLOPES = (0.18, 0.51, 0.96), (-0.46, -0.30, -0.15)
_DUST_FALL = (4.0, 5.0, 0.5)  # Fudamoto et al. 2020 (arXiv:2004.10760)

# Aird et al. 2012 (arXiv:1107.4368): probability per dex of specific accretion rate at the Eddington
# limit and redshift 0.6, slope and evolution; Aird et al. 2013 (arXiv:1301.1689): slope above the limit.
_AGN_LEVEL, _AGN_SLOPE, _AGN_STEEP = 10**-3.15, 0.65, 2.1
_AGN_EVOLUTION, _AGN_PIVOT, _AGN_HELD = 3.47, 0.6, 2.5
EDDINGTON = 68.0
"""Bolometric luminosity per stellar mass [Lsun/Msun] at the Eddington limit, black hole of 0.002 M."""


def age_of_universe(redshift: np.ndarray) -> np.ndarray:
    """Age [Gyr] at a redshift of any shape up to 8, Planck 2018; interpolated, good to 1e-5."""
    nodes = np.linspace(0, np.log(9.0), 2048)
    return np.interp(np.log1p(redshift), nodes, _COSMOLOGY.age(np.expm1(nodes)).value)


def distance_modulus(redshift: np.ndarray) -> np.ndarray:
    """Distance modulus [mag] at a redshift of any shape from 1e-4 to 8, Planck 2018."""
    nodes = np.linspace(np.log1p(1e-4), np.log(9.0), 4096)
    at = np.expm1(nodes)
    smooth = _COSMOLOGY.distmod(at).value - 5 * np.log10(at)
    return np.interp(np.log1p(redshift), nodes, smooth) + 5 * np.log10(redshift)


def popesso_sequence(log_mass: np.ndarray, redshift: np.ndarray) -> np.ndarray:
    """Log10 SFR [Msun/yr] of the main sequence of Popesso et al. 2023, eq. 14 (UV and infrared SFRs)."""
    a0, a1, a2, a3, a4 = _POPESSO
    time = age_of_universe(redshift)
    return a0 + a1 * time - np.log10(1 + 10 ** (-a4 * (log_mass - a2 - a3 * time)))


def star_forming_sequence(log_mass: np.ndarray, redshift: np.ndarray) -> np.ndarray:
    """Log10 SFR over 100 Myr [Msun/yr] on the ridge of the star-forming sequence.

    Leja et al. 2022, eq. 9 and Table 1 (ridge), inside 0.2 < z < 2.7 and above the masses at which
    their samples are complete. Outside, the ridge takes the shape and the evolution of the sequence of
    Popesso et al. 2023: its value at the nearest point inside plus the published change from there. So
    the offset between SFRs of full spectral fits and of UV plus infrared light stays as measured, and
    dwarf galaxies have nearly the same specific rate at all masses.
    """
    at = np.clip(redshift, *_RIDGE_REDSHIFTS)
    mass = np.maximum(log_mass, np.interp(at, *_RIDGE_COMPLETE))
    above, below, level, knee = (np.polynomial.polynomial.polyval(at, c) for c in _RIDGE.values())
    ridge = np.where(mass > knee, above, below) * (mass - knee) + level
    return ridge + popesso_sequence(log_mass, redshift) - popesso_sequence(mass, at)


def quiescent_fraction(log_mass: np.ndarray, redshift: np.ndarray) -> np.ndarray:
    """Fraction of galaxies that are quiescent (Koprowski et al. 2026, COSMOS-Web, NUVrJ colours).

    Fitted for 0.5 < z < 5 and 9 < log10 M < 12; held at the edges, and below 0.95.
    """
    at, mass = np.clip(redshift, *_QUIESCENT_REDSHIFTS), np.clip(log_mass, *_QUIESCENT_MASSES)
    height, centre, width = (a * np.exp(b * at) + c for a, b, c in _QUIESCENT.values())
    return np.minimum(height * np.exp(-0.5 * ((mass - centre) / width) ** 2), 0.95)


def stellar_metallicity(
    log_mass: np.ndarray, redshift: np.ndarray, quiescent: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median, lower and upper one-sigma width of log10 Z/Zsun of the stars.

    Gallazzi et al. 2005, Table 2, for z = 0; held above its masses, continued below them with the slope
    of dwarf galaxies of Kirby et al. 2013. Star-forming galaxies move down in proportion to log10(1 + z)
    so as to lie 0.6 dex lower at z = 3.5 (Cullen et al. 2019), where the change is stopped; quiescent
    galaxies do not move (Gallazzi et al. 2014, Carnall et al. 2022: below 0.15 dex at z ~ 1).
    """
    mass, columns = GALLAZZI[:, 0], GALLAZZI[:, 1:]
    median, low, high = (np.interp(log_mass, mass, column) for column in columns.T)
    median, low, high = median, median - low, high - median
    median = median + _DWARF_SLOPE * np.minimum(log_mass - mass[0], 0.0)
    evolution = _YOUNG_OFFSET * np.log1p(np.minimum(redshift, _YOUNG_REDSHIFT)) / np.log1p(_YOUNG_REDSHIFT)
    return np.where(quiescent, median, median + evolution), low, high


def gas_metallicity(log_mass: np.ndarray, log_sfr: np.ndarray) -> np.ndarray:
    """Log10 of gas-phase oxygen abundance relative to the Sun.

    Fundamental relation of Curti et al. 2020, eq. 5 (scatter 0.054 dex); SFRs are held inside
    -1 < log10 SFR < 2, the range of its stacks, so that dwarf galaxies follow its power law in mass.
    No evolution with redshift beside that of the SFRs: Sanders et al. 2021 find less than 0.06 dex to
    z = 3.3; beyond, measurements disagree and the relation is kept.
    """
    z0, m0, m1, gamma, beta = _CURTI
    turnover = m0 + m1 * np.clip(log_sfr, *_CURTI_SFR)
    return z0 - SOLAR_OXYGEN - gamma / beta * np.log10(1 + 10 ** (-beta * (log_mass - turnover)))


def ionisation_parameter(log_ssfr: np.ndarray, gas_log_z: np.ndarray) -> np.ndarray:
    """Log10 U of a galaxy's nebulae.

    Kashino & Inoue 2019 (arXiv:1812.06939): U rises as sSFR^0.43, Z^-0.36 and n_e^-0.29, with densities
    of their sample rising about as sSFR^0.5; normalised to log10 U = -3.1 at sSFR = 1e-10/yr and solar
    abundance, the typical galaxy of SDSS (Kaasinen et al. 2018). Measured for -10.5 < log10 sSFR < -8;
    held outside.
    """
    ssfr = np.clip(log_ssfr, -10.5, -8.0)
    return -3.1 + (0.43 - 0.29 * 0.5) * (ssfr + 10.0) - 0.36 * gas_log_z


def dust_depth(log_mass: np.ndarray, redshift: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Median V-band optical depth of the diffuse dust of star-forming galaxies.

    A(H alpha) against mass of Garn & Best 2010, eq. 5, without evolution at fixed mass to z ~ 3
    (Whitaker et al. 2017, Shapley et al. 2022), turned into the depth of the diffuse dust for birth
    clouds that are as deep. Above its masses the relation is held, below them it falls as the oxygen
    abundance, M^0.31. Between z = 4 and 5 depths fall to half (Fudamoto et al. 2020: infrared excesses
    lower by 0.5 to 1 dex at fixed mass).

    Args:
        log_mass: log10 of surviving mass [Msun].
        redshift: redshift.
        excess: log10 SFR above the star-forming sequence [dex].
    """
    mass = np.clip(log_mass, *_GARN_BEST_MASSES)
    depth = np.polyval(_GARN_BEST, mass - 10.0) / _HALPHA_PER_DEPTH
    depth = depth * 10 ** (_CURTI[3] * np.minimum(log_mass - _GARN_BEST_MASSES[0], 0.0))
    start, end, factor = _DUST_FALL
    fall = 1 - (1 - factor) * np.clip((redshift - start) / (end - start), 0.0, 1.0)
    return depth * fall * 10 ** (0.3 * np.clip(excess, -1.0, 1.0))


def dust_slope(depth: np.ndarray) -> np.ndarray:
    """Mean slope offset of the attenuation curve (0 is Calzetti's) at an optical depth.

    Salim et al. 2018: opaque galaxies have shallower curves. Slopes of their three bins of mass, at the
    median depths of those masses; held outside 0.18 < depth < 0.96.
    """
    return np.interp(depth, _SLOPE_DEPTHS, _SLOPES)


def agn_level(redshift: np.ndarray, quiescent: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Probability per dex of specific accretion rate of an AGN at the Eddington limit.

    Aird et al. 2012: the same at all masses, rising as (1 + z)^3.47, twice as large in blue as in red
    galaxies; measured to z = 1, held beyond 2.5, where Aird et al. 2019 see the rise end. Galaxies above
    the star-forming sequence have more: 0.5 dex per dex of SFR (starbursts of Aird et al. 2019).
    """
    growth = ((1 + np.minimum(redshift, _AGN_HELD)) / (1 + _AGN_PIVOT)) ** _AGN_EVOLUTION
    hosts = np.where(quiescent, 0.5, 10 ** (0.5 * np.clip(excess, 0.0, 1.0)))
    return _AGN_LEVEL * growth * hosts


def accretion_survival(log_rate: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Probability that the specific accretion rate (in Eddington units) exceeds 10^log_rate.

    Power laws of slope -0.65 below and -2.1 above the Eddington limit, the lower one continued to the
    rate at which every galaxy is accounted for, where this reaches 1.
    """
    tail = level / (_AGN_STEEP * np.log(10))
    rising = level / (_AGN_SLOPE * np.log(10))
    below = tail + rising * (10 ** (-_AGN_SLOPE * np.minimum(log_rate, 0.0)) - 1)
    return np.clip(np.where(log_rate > 0, tail * 10 ** (-_AGN_STEEP * log_rate), below), 0.0, 1.0)


def accretion_rate(survival: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Log10 specific accretion rate of given survival probability: inverse of `accretion_survival`."""
    tail = level / (_AGN_STEEP * np.log(10))
    rising = level / (_AGN_SLOPE * np.log(10))
    below = -np.log10(1 + np.maximum(survival - tail, 0.0) / rising) / _AGN_SLOPE
    return np.where(survival < tail, -np.log10(survival / tail) / _AGN_STEEP, below)


def old_starlight(redshift: np.ndarray) -> np.ndarray:
    """Bolometric luminosity per surviving mass [Lsun/Msun] of stars older than 100 Myr.

    That of a population half as old as the universe, 2.5 (age / Gyr)^-0.8: Bruzual & Charlot 2003, solar
    metallicity, to 20 percent between 0.3 and 10 Gyr.
    """
    return 2.5 * (0.5 * age_of_universe(redshift)) ** -0.8
