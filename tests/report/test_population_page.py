"""The population report: densities from draws, tables to compare with, and the page."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.cosmology import Planck18

from popcosmos_hpc.errors import ConfigurationError, SchemaError
from popcosmos_hpc.parameters import POP_COSMOS
from popcosmos_hpc.report import population_densities, population_scalings, published_points
from popcosmos_hpc.report.population_data import Population, _scale, read_catalog, shell
from popcosmos_hpc.report.population_page import write_population_report
from popcosmos_hpc.report.section import Figure, Table
from popcosmos_hpc.training.galaxy_relations import star_forming_sequence
from popcosmos_hpc.training.number_density import MassRedshiftCells, mass_function
from popcosmos_hpc.training.reference_population import draw_galaxies
from tests.report.test_page import _parse

N_DRAWS = 40_000


@pytest.fixture(scope="module")
def galaxies():
    rng = np.random.default_rng(5)
    cells = MassRedshiftCells(lambda redshift: np.full_like(redshift, 9.5))
    return draw_galaxies(rng, *cells.sample(rng, N_DRAWS)), cells.per_square_degree


@pytest.fixture(scope="module")
def population(galaxies):
    """Draws with the quantities that an emulator would give, exactly."""
    drawn, _ = galaxies
    sample = dict(zip(POP_COSMOS.names, drawn.theta.T.astype(float), strict=True))
    sample |= {"log10_mass": drawn.log_mass, "log10_sfr_100myr": drawn.log_sfr}
    sample["log10_ssfr_100myr"] = drawn.log_sfr - drawn.log_mass
    per_draw, pivot = _scale(sample["redshift"], drawn.log_mass)
    magnitude = 25.0 + 0.0 * drawn.log_mass
    return Population("drawn", sample, magnitude, "i", None, per_draw, pivot, ())


def test_shell_is_the_comoving_volume():
    expected = (Planck18.comoving_volume(1.1) - Planck18.comoving_volume(0.8)).value / 41252.96
    assert shell(0.8, 1.1) == pytest.approx(expected, rel=1e-4)


def test_pivot_finds_the_number_density_of_the_draws(population, galaxies):
    _, per_square_degree = galaxies
    low, high = population.pivot
    drawn = galaxies[0]
    redshift = population["redshift"]
    n = np.sum((drawn.log_mass > 10.5) & (drawn.log_mass < 11) & (redshift > low) & (redshift < high))
    # Poisson error of the galaxies at the pivot; 4.5 of them.
    assert population.per_draw * N_DRAWS == pytest.approx(per_square_degree, rel=4.5 / np.sqrt(n))


def test_histogram_recovers_the_mass_function_away_from_the_pivot(population):
    mass = population["log10_mass"]
    for low, high in ((1.5, 2.0), (2.5, 3.0)):
        found, error = population_densities._histogram(
            population["redshift"], mass, population.per_draw, low, high
        )
        centres = population_densities._MASSES
        for place in np.flatnonzero((centres > 9.7) & (centres < 11.2)):
            grid = np.linspace(*population_densities._MASS_EDGES[place : place + 2], 11)
            z = np.linspace(low, high, 11)
            expected = mass_function(grid[None, :], z[:, None]).mean()
            # 3 percent for the factor of the pivot and for volumes within the bin.
            assert abs(found[place] - expected) < 4.5 * error[place] + 0.03 * expected


def test_faintest_mass_follows_mass_to_light_ratios(population):
    # All galaxies alike: magnitude 24 at 10^10, so the limit 25 is met at 10^9.6.
    limited = Population(
        "alike", population.sample, 24.0 - 2.5 * (population["log10_mass"] - 10.0), "i", 25.0, 1.0, None, ()
    )
    assert limited.faintest_mass(0.5, 1.0) == pytest.approx(9.6)
    assert population.faintest_mass(0.5, 1.0) == -np.inf


def test_captions_say_how_far_the_population_is_off(population):
    section = population_densities.densities_section(population)
    said = section.blocks[0].text
    assert "0.5 < z < 1.0" in said and "10^10.5" in said and "Leja et al. 2020" in said.replace("\n", " ")
    shifted = {**population.sample, "log10_sfr_100myr": population["log10_sfr_100myr"] + 0.3}
    moved = Population("moved", shifted, population.magnitude, "i", None, population.per_draw, None, ())
    offsets = [_offset(population_scalings._sequence(one).caption) for one in (population, moved)]
    # Medians of the drawn galaxies lie on the ridge; 0.3 dex more rate shows as 0.3 dex.
    assert abs(offsets[0]) < 0.05 and offsets[1] - offsets[0] == pytest.approx(0.3, abs=0.05)
    assert population_densities.in_words([0.1, 0.2, 0.3]).startswith(
        " In the median the population lies 0.20 dex above"
    )


def _offset(caption: str) -> float:
    return float(caption.split("medians lie ")[1].split(" dex")[0])


def test_every_figure_names_what_it_is_compared_with(population):
    blocks = (
        *population_densities.densities_section(population).blocks,
        *population_scalings.scalings_section(population).blocks,
    )
    captions = [block.caption for block in blocks if isinstance(block, Figure)]
    assert len(captions) == 7
    assert all("et al. 20" in text or "Madau" in text or "Science Book" in text for text in captions)
    table = next(block for block in blocks if isinstance(block, Table))
    assert table.rows[-1][0] == "i < 25" and table.rows[-1][2] == "46"


def test_published_numbers():
    # Madau & Dickinson 2014: the peak is near z = 1.9, 0.13 for a Salpeter IMF.
    grid = np.linspace(0, 6, 601)
    rate = published_points.cosmic_rate(grid)
    assert grid[rate.argmax()] == pytest.approx(1.86, abs=0.05)
    assert rate.max() / published_points.SALPETER_TO_CHABRIER == pytest.approx(0.13, abs=0.01)
    assert np.trapezoid(published_points.redshift_distribution(grid, 24.0), grid) == pytest.approx(
        1, abs=1e-3
    )
    for low, high, points in published_points.MASS_FUNCTIONS:
        assert low < high and np.all(points[:, 2] < points[:, 1]) and np.all(points[:, 1] < points[:, 3])
        assert np.all(np.diff(points[:, 0]) > 0)


@pytest.mark.parametrize(
    "names",
    [("redshift", "log10_mass", "log10_sfr"), ("z", "lmass", "lsfr"), ("z_best", "fast_lmass", "sfr")],
)
def test_catalogs_in_every_spelling(tmp_path, names):
    rng = np.random.default_rng(2)
    redshift, mass = rng.uniform(0.5, 1.0, 500), rng.uniform(10.0, 11.0, 500)
    rate = star_forming_sequence(mass, redshift)
    written = 10**rate if names[2] == "sfr" else rate.copy()
    redshift[0], written[1] = -1.0, (-99.0)
    pq.write_table(pa.table(dict(zip(names, (redshift, mass, written), strict=True))), tmp_path / "t.parquet")
    catalog = read_catalog((tmp_path / "t.parquet",))
    assert len(catalog.redshift) == 499, "a missing redshift is dropped"
    assert not np.isfinite(catalog.log_sfr[0]) and catalog.log_sfr[1] == pytest.approx(rate[2])


def test_catalog_of_other_columns_is_refused(tmp_path):
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "t.parquet")
    with pytest.raises(SchemaError, match="lmass"):
        read_catalog((tmp_path / "t.parquet",))


def test_page_of_a_table_is_self_contained(tmp_path, galaxies):
    drawn, per_square_degree = galaxies
    few = drawn.theta[:6000]
    facts = {"population": "drawn", "galaxies_per_square_degree": str(per_square_degree)}
    table = pa.table(dict(zip(POP_COSMOS.names, few.T, strict=True))).replace_schema_metadata(facts)
    pq.write_table(table, tmp_path / "draws.parquet")
    page = _parse(write_population_report(tmp_path / "draws.parquet", tmp_path / "out" / "page.html"))
    assert len(page.sources) == 7 and all(source.startswith("data:image/svg") for source in page.sources)
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    text = " ".join(page.text)
    assert "not rescaled" in text and "Population: drawn" in text and "6,000" in text


def test_unusable_draws_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="shape"):
        write_population_report(np.zeros((100, 3)), tmp_path / "p.html")
    with pytest.raises(ConfigurationError, match="at least"):
        write_population_report(np.zeros((3, 16)), tmp_path / "p.html")
    pq.write_table(pa.table({"redshift": [1.0]}), tmp_path / "t.parquet")
    with pytest.raises(SchemaError, match="log10Z"):
        write_population_report(tmp_path / "t.parquet", tmp_path / "p.html")
