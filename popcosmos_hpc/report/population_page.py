"""The report on a population: one HTML page that compares it with published measurements."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from popcosmos_hpc import __version__
from popcosmos_hpc.model.prior import AbstractPrior
from popcosmos_hpc.report.page import Tile, render_page, write_page
from popcosmos_hpc.report.population_data import Population, read_population
from popcosmos_hpc.report.population_densities import densities_section
from popcosmos_hpc.report.population_scalings import scalings_section
from popcosmos_hpc.report.section import number, percent

logger = logging.getLogger(__name__)


def write_population_report(
    prior_or_draws: AbstractPrior | np.ndarray | Path | str,
    out: Path | str,
    *,
    bundle: str | Path = "kids9",
    band: str = "i",
    n_draws: int = 200_000,
    magnitude_limit: float | None = None,
    comparison: Sequence[Path | str] = (),
    name: str | None = None,
) -> Path:
    """Compare a population with published measurements, in one self-contained HTML page.

    Mass functions, cosmic star formation rate, redshift distributions, star-forming sequence,
    metallicities and AGN. Draws without a number density are normalised at one pivot, which the page states.

    Args:
        prior_or_draws: a prior; draws (n, 16) in the order of `parameters.POP_COSMOS`; a table with one
            column per parameter (Parquet, FITS, CSV or HDF5; the metadata of `write_draws` are used); or a
            population bundle, by folder or name.
        out: HTML file to write.
        bundle: photometry bundle for magnitudes and derived quantities.
        band: its band for magnitude cuts; the published cuts are in i.
        n_draws: how many draws to make of a prior.
        magnitude_limit: faintest magnitude of the draws in `band`, if they have such a limit and the table
            does not name it.
        comparison: tables of real galaxies, such as those of 3D-HST (`population_data.read_catalog`).
        name: of the population, for the page.

    Returns:
        Path of the page.

    Raises:
        ConfigurationError: draws are too few or of another space.
        SchemaError: a table lacks columns.
        BundleError: there is no such bundle or band.
    """
    paths = tuple(Path(path) for path in comparison)
    population = read_population(prior_or_draws, bundle, band, n_draws, magnitude_limit, paths, name)
    page = render_page(
        name=f"Population: {population.name}",
        subtitle=_subtitle(population, bundle),
        tiles=_tiles(population),
        warnings=(),
        sections=(densities_section(population), scalings_section(population)),
        version=__version__,
    )
    path = write_page(page, Path(out))
    logger.info("report on %d draws written to %s", population.n, path)
    return path


def _subtitle(population: Population, bundle: str | Path) -> str:
    limit = "no magnitude limit" if population.limit is None else f"{population.band} < {population.limit:g}"
    return (
        f"{population.n:,} draws, {limit}; magnitudes, masses and rates by the emulator {Path(bundle).name}, "
        "without noise"
    )


def _tiles(population: Population) -> tuple[Tile, ...]:
    redshift, mass = population["redshift"], population["log10_mass"]
    low, middle, high = np.quantile(redshift, (0.16, 0.5, 0.84))
    first, second, third = np.quantile(mass, (0.16, 0.5, 0.84))
    quiescent = population["log10_ssfr_100myr"] < -11
    known = "as given" if population.pivot is None else "normalised at a pivot"
    return (
        Tile(f"{population.n:,}", "draws"),
        Tile(number(population.per_draw * population.n / 3600), "galaxies per square arcmin", known),
        Tile(f"{middle:.2f}", "median redshift", f"{low:.2f} to {high:.2f} (68 %)"),
        Tile(f"{second:.2f}", "median log10 mass", f"{first:.2f} to {third:.2f} (68 %)"),
        Tile(percent(np.count_nonzero(quiescent), population.n), "below 1e-11 per year"),
    )
