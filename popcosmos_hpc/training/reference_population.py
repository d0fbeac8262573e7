"""The reference population: galaxies drawn from published relations, as a magnitude-limited survey sees them.

It is not the population of the pop-cosmos papers, which was trained on the photometry of COSMOS2020: every
number here comes from a published relation (see `number_density`, `galaxy_relations`, `history_draws`).
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import ndtr, ndtri

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.bundle import load_bundle
from popcosmos_hpc.model.emulator import AbstractEmulator
from popcosmos_hpc.parameters import POP_COSMOS
from popcosmos_hpc.photometry import AB_ZERO_POINT
from popcosmos_hpc.training import galaxy_relations as relations
from popcosmos_hpc.training.history_draws import Histories, draw_histories
from popcosmos_hpc.training.number_density import MASS_RANGE, REDSHIFT_RANGE, MassRedshiftCells

SOURCES = {
    "mass function": "Leja et al. 2020, arXiv:1910.04168 (z < 3); Weaver et al. 2023, arXiv:2212.02512",
    "star-forming sequence": "Leja et al. 2022, arXiv:2110.04314; Popesso et al. 2023, arXiv:2203.10487",
    "quiescent fraction": "Koprowski et al. 2026, COSMOS-Web",
    "surviving mass": "Behroozi et al. 2013, arXiv:1207.6105",
    "stellar metallicity": "Gallazzi et al. 2005, astro-ph/0506539; Kirby et al. 2013, arXiv:1310.0814; "
    "Cullen et al. 2019, arXiv:1903.11081",
    "gas metallicity": "Curti et al. 2020, arXiv:1910.00597",
    "ionisation parameter": "Kashino & Inoue 2019, arXiv:1812.06939; Kaasinen et al. 2018, arXiv:1804.10621",
    "dust": "Garn & Best 2010, arXiv:0911.3664; Salim et al. 2018, arXiv:1804.05850; "
    "Fudamoto et al. 2020, arXiv:2004.10760; Leja et al. 2019, arXiv:1812.05608",
    "AGN": "Aird et al. 2012, arXiv:1107.4368; 2013, arXiv:1301.1689; 2019, arXiv:1810.04683",
}

_BUNDLE = "kids9"
_CHUNK = 8192  # galaxies per call of the emulator
_ROUND = 4 * _CHUNK  # proposals per random stream
_PILOT = 4 * _CHUNK
_PILOT_SEED = 20_050_613
_BINS = 32  # in ln(1 + z), for the faintest mass that a survey sees
_MARGIN = 0.1  # dex below it
_MARGIN_OF_BOX = 1e-4  # draws keep this share of the box away from its walls

_SEQUENCE_WIDTH = 0.30  # dex, about the ridge of Leja et al. 2022
_QUENCHED_DEPTH, _QUENCHED_WIDTH, _QUENCHED_RANGE = -1.9, 0.75, (-4.0, -0.6)  # dex below the ridge
_LONG_TERM, _LONG_TERM_WIDTH = 0.5, 0.15  # share of an excess that lasts; scatter of the rest
_BURSTS, _DWARF_BURSTS = 0.15, 0.30  # dex from bin to bin, at 10^10.5 and 10^8.5 Msun
_GAS_WIDTH, _IONISATION_WIDTH = 0.10, 0.25
_DUST_WIDTH, _QUIESCENT_DUST, _SLOPE_WIDTH, _CLOUD_WIDTH = 0.25, 0.20, 0.25, 0.30


class Galaxies(NamedTuple):
    """Proposed galaxies before the magnitude limit.

    Attributes:
        theta: (n, 16) physical parameters.
        log_mass: (n,) log10 surviving mass [Msun] as drawn from the mass function.
        log_sfr: (n,) log10 SFR over 100 Myr [Msun/yr] as drawn.
        quiescent: (n,) whether the galaxy was drawn as quiescent.
    """

    theta: np.ndarray
    log_mass: np.ndarray
    log_sfr: np.ndarray
    quiescent: np.ndarray


def draw_reference(
    n: int, seed: int, magnitude_limit: float = 26.0, band: str = "i", bundle: str = _BUNDLE
) -> np.ndarray:
    """Draw galaxies of the reference population that are brighter than a limit.

    The first draws do not depend on how many are asked for.

    Args:
        n: number of galaxies.
        seed: of the random streams.
        magnitude_limit: faintest AB magnitude, without noise.
        band: the band of the limit.
        bundle: photometry bundle that has the band.

    Returns:
        theta (n, 16) float32 in the order of `parameters.POP_COSMOS`, strictly inside its box.

    Raises:
        ConfigurationError: n is not positive, or hardly any galaxy is that bright.
        BundleError: there is no such bundle or band.
    """
    return _collect(n, seed, magnitude_limit, band, bundle)[0]


def _collect(n: int, seed: int, magnitude_limit: float, band: str, bundle: str) -> tuple[np.ndarray, float]:
    """Draws (n, 16), and the number of such galaxies per square degree."""
    if n < 1:
        raise ConfigurationError(
            "a positive number of draws", str(n), "reference population", "Ask for one or more."
        )
    _emulator(bundle, band)  # an unknown band is refused before anything is drawn
    kept, total, tried = [], 0, 0
    cells, rounds = _cells(magnitude_limit, band, bundle), _rounds(seed, magnitude_limit, band, bundle)
    while total < n:
        theta = next(rounds)
        kept.append(theta)
        total, tried = total + len(theta), tried + _ROUND
        if tried >= 64 * _ROUND and total < 1e-4 * tried:
            raise ConfigurationError(
                "a limit that some galaxies pass",
                f"{band} < {magnitude_limit}",
                "reference population",
                "Choose a fainter limit.",
            )
    return np.concatenate(kept)[:n], cells.per_square_degree * total / tried


def _rounds(seed: int, magnitude_limit: float, band: str, bundle: str) -> Iterator[np.ndarray]:
    cells, emulator = _cells(magnitude_limit, band, bundle), _emulator(bundle, band)
    index = 0
    while True:
        rng = np.random.default_rng([seed, index])
        theta = draw_galaxies(rng, *cells.sample(rng, _ROUND)).theta
        yield theta[magnitudes(emulator, theta) < magnitude_limit]
        index += 1


@lru_cache(maxsize=4)
def _emulator(bundle: str, band: str) -> AbstractEmulator:
    return load_bundle(bundle).emulator((band,))


@lru_cache(maxsize=4)
def _cells(magnitude_limit: float, band: str, bundle: str) -> MassRedshiftCells:
    nodes, brightest = _brightest(bundle, band)
    # A galaxy of mass M and mass-normalised magnitude m has magnitude m - 2.5 log10 M.
    limit = 0.4 * (brightest - magnitude_limit) - _MARGIN
    return MassRedshiftCells(lambda redshift: np.interp(np.log1p(redshift), nodes, limit))


@lru_cache(maxsize=4)
def _brightest(bundle: str, band: str) -> tuple[np.ndarray, np.ndarray]:
    """Centres in ln(1 + z), and the magnitude per solar mass of the brightest 1 in 500 galaxies there."""
    rng = np.random.default_rng(_PILOT_SEED)
    low, high = np.log1p(REDSHIFT_RANGE)
    log1pz = rng.uniform(low, high, _PILOT)
    log_mass = rng.uniform(MASS_RANGE[0], 11.0, _PILOT)
    theta = draw_galaxies(rng, np.expm1(log1pz), log_mass).theta
    normalised = magnitudes(_emulator(bundle, band), theta) + 2.5 * log_mass
    edges = np.linspace(low, high, _BINS + 1)
    place = np.clip(np.searchsorted(edges, log1pz) - 1, 0, _BINS - 1)
    brightest = np.array([np.quantile(normalised[place == k], 0.002) for k in range(_BINS)])
    padded = np.pad(brightest, 1, mode="edge")
    return 0.5 * (edges[1:] + edges[:-1]), np.min([padded[:-2], brightest, padded[2:]], axis=0)


@eqx.filter_jit
def _fluxes(emulator: AbstractEmulator, theta: jax.Array) -> jax.Array:
    return jax.vmap(emulator)(theta)[:, 0]


def magnitudes(emulator: AbstractEmulator, theta: np.ndarray) -> np.ndarray:
    """AB magnitudes (n,) of the first band of an emulator, without noise."""
    padded = np.concatenate([theta, np.repeat(theta[-1:], -len(theta) % _CHUNK, axis=0)]).astype(np.float32)
    parts = [_fluxes(emulator, jnp.asarray(padded[i : i + _CHUNK])) for i in range(0, len(padded), _CHUNK)]
    flux = np.concatenate([np.asarray(part) for part in parts])[: len(theta)]
    return AB_ZERO_POINT - 2.5 * np.log10(np.maximum(flux, 1e-30))


def draw_galaxies(rng: np.random.Generator, redshift: np.ndarray, log_mass: np.ndarray) -> Galaxies:
    """Draw all parameters of galaxies of given redshift and surviving mass.

    Args:
        rng: the random stream.
        redshift: (n,) inside the box of the parameters.
        log_mass: (n,) log10 of surviving mass [Msun].
    """
    n = len(redshift)
    quiescent = rng.uniform(size=n) < relations.quiescent_fraction(log_mass, redshift)
    sequence = relations.star_forming_sequence(log_mass, redshift)
    excess = np.where(quiescent, _quenched(rng, n), _SEQUENCE_WIDTH * rng.standard_normal(n))
    log_sfr = sequence + excess
    history = _histories(rng, redshift, log_mass, sequence, excess, quiescent)
    formed = log_mass - np.log10(history.surviving)
    columns = {
        "N": relations.distance_modulus(redshift) - 2.5 * formed,
        **{f"logsfr_ratio{index + 1}": history.ratios[:, index] for index in range(6)},
        **_chemistry(rng, redshift, log_mass, log_sfr, quiescent),
        **_dust(rng, redshift, log_mass, excess, quiescent),
        **_agn(rng, redshift, log_mass, log_sfr, excess, quiescent),
        "redshift": redshift,
    }
    theta = np.column_stack([_inside(name, columns[name]) for name in POP_COSMOS.names])
    return Galaxies(theta.astype(np.float32), log_mass, log_sfr, quiescent)


def _quenched(rng: np.random.Generator, n: int) -> np.ndarray:
    """Log10 SFR of quiescent galaxies relative to the ridge (n,), as broad as in Leja et al. 2022."""
    return _truncated_normal(rng, np.full(n, _QUENCHED_DEPTH), np.full(n, _QUENCHED_WIDTH), *_QUENCHED_RANGE)


def _histories(rng, redshift, log_mass, sequence, excess, quiescent) -> Histories:
    lasting = _LONG_TERM * excess + _LONG_TERM_WIDTH * rng.standard_normal(len(redshift))
    lasting = np.where(quiescent, _LONG_TERM_WIDTH * rng.standard_normal(len(redshift)), lasting)
    scatter = np.interp(log_mass, (8.5, 10.5), (_DWARF_BURSTS, _BURSTS))
    specific = sequence - log_mass
    return draw_histories(rng, redshift, specific + excess, specific + lasting, quiescent, scatter)


def _chemistry(rng, redshift, log_mass, log_sfr, quiescent) -> dict[str, np.ndarray]:
    n = len(redshift)
    median, low, high = relations.stellar_metallicity(log_mass, redshift, quiescent)
    gas = relations.gas_metallicity(log_mass, log_sfr) + _GAS_WIDTH * rng.standard_normal(n)
    ionisation = relations.ionisation_parameter(log_sfr - log_mass, gas)
    return {
        "log10Z": _two_sided(rng, "log10Z", median, low, high),
        "gaslog10Z": gas,
        "gaslog10U": ionisation + _IONISATION_WIDTH * rng.standard_normal(n),
    }


def _dust(rng, redshift, log_mass, excess, quiescent) -> dict[str, np.ndarray]:
    n = len(redshift)
    forming = relations.dust_depth(log_mass, redshift, excess)
    depth = np.where(quiescent, np.minimum(_QUIESCENT_DUST, forming), forming)
    depth = depth * 10 ** (_DUST_WIDTH * rng.standard_normal(n))
    width = np.full(n, _SLOPE_WIDTH)
    return {
        "dust2": depth,
        "dust_index": _truncated_normal(rng, relations.dust_slope(depth), width, *_box("dust_index")),
        "dust1_fraction": _truncated_normal(
            rng, np.ones(n), np.full(n, _CLOUD_WIDTH), *_box("dust1_fraction")
        ),
    }


def _agn(rng, redshift, log_mass, log_sfr, excess, quiescent) -> dict[str, np.ndarray]:
    """AGN luminosity of an accretion rate, relative to starlight; rates keep the fraction in its box."""
    level = relations.agn_level(redshift, quiescent, excess)
    starlight = 1.0e10 * 10 ** (log_sfr - log_mass) + relations.old_starlight(redshift)
    edges = [
        relations.accretion_survival(bound / np.log(10) + np.log10(starlight / relations.EDDINGTON), level)
        for bound in _box("lnfagn")
    ]
    survival = edges[1] + (edges[0] - edges[1]) * rng.uniform(size=len(redshift))
    rate = relations.accretion_rate(survival, level)
    low, high = _box("lnagntau")
    return {
        "lnfagn": np.log(10) * rate + np.log(relations.EDDINGTON / starlight),
        "lnagntau": rng.uniform(low, high, len(redshift)),
    }


def _box(name: str) -> tuple[float, float]:
    """Bounds of a parameter, a little inside its walls."""
    parameter = POP_COSMOS.parameters[POP_COSMOS.index(name)]
    margin = _MARGIN_OF_BOX * (parameter.upper - parameter.lower)
    return parameter.lower + margin, parameter.upper - margin


def _inside(name: str, values: np.ndarray) -> np.ndarray:
    if name in ("N", "redshift"):
        return values
    return np.clip(values, *_box(name))


def _truncated_normal(rng: np.random.Generator, mean, sigma, lower, upper) -> np.ndarray:
    low, high = ndtr((lower - mean) / sigma), ndtr((upper - mean) / sigma)
    return mean + sigma * ndtri(low + rng.uniform(size=len(mean)) * (high - low))


def _two_sided(rng: np.random.Generator, name: str, median, low, high) -> np.ndarray:
    """A normal with different widths below and above its median, cut at the box."""
    lower, upper = _box(name)
    median = np.clip(median, lower, upper)
    first, last = ndtr((lower - median) / low), ndtr((upper - median) / high)
    quantile = ndtri(first + rng.uniform(size=len(median)) * (last - first))
    return median + np.where(quantile < 0, low, high) * quantile


def write_draws(
    path: Path | str,
    n: int,
    seed: int,
    magnitude_limit: float = 26.0,
    band: str = "i",
    bundle: str = _BUNDLE,
) -> Path:
    """Write draws of the reference population to Parquet, one float32 column per parameter.

    The metadata of the file name the limit, the seed, the bundle, the sources, and the number of such
    galaxies per square degree, from which densities per volume follow.

    Args:
        path: file to write.
        n: number of galaxies.
        seed: of the random streams.
        magnitude_limit: faintest AB magnitude.
        band: the band of the limit.
        bundle: photometry bundle that has the band.

    Returns:
        The path.

    Raises:
        ConfigurationError: as `draw_reference`.
        BundleError: as `draw_reference`.
    """
    theta, density = _collect(n, seed, magnitude_limit, band, bundle)
    facts = {
        "population": "reference population",
        "made_of": "published relations; it is not the population of the pop-cosmos papers",
        "magnitude_limit": str(magnitude_limit),
        "band": band,
        "bundle": f"{bundle} {load_bundle(bundle).sha256}",
        "seed": str(seed),
        "galaxies_per_square_degree": f"{density:.6g}",
        **{f"source {name}": source for name, source in SOURCES.items()},
    }
    arrays = {name: pa.array(theta[:, index]) for index, name in enumerate(POP_COSMOS.names)}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays).replace_schema_metadata(facts), path)
    return path
