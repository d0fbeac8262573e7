"""The reference population gives back the relations that it is made of."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.cosmology import Planck18
from scipy.special import ndtr

from popcosmos_hpc.errors import BundleError, ConfigurationError
from popcosmos_hpc.parameters import POP_COSMOS
from popcosmos_hpc.sps import star_formation
from popcosmos_hpc.training import galaxy_relations as relations
from popcosmos_hpc.training.history_draws import bin_edges, draw_histories, surviving_fraction
from popcosmos_hpc.training.number_density import MassRedshiftCells, mass_function, volume_element
from popcosmos_hpc.training.reference_population import draw_galaxies, draw_reference, write_draws

N_DRAWS = 60_000
ERRORS = 4.5  # standard errors: of some 100 comparisons below, none fails by chance in 1000 seeds


def column(theta, name):
    return np.asarray(theta[:, POP_COSMOS.index(name)], float)


@pytest.fixture(scope="module")
def galaxies():
    rng = np.random.default_rng(11)
    cells = MassRedshiftCells(lambda redshift: np.full_like(redshift, 9.0))
    return draw_galaxies(rng, *cells.sample(rng, N_DRAWS))


@pytest.fixture(scope="module")
def histories(galaxies):
    """Mass fractions (n, bin), rate over 100 Myr and surviving mass, recomputed from theta alone."""
    redshift = column(galaxies.theta, "redshift")
    ratios = np.column_stack([column(galaxies.theta, f"logsfr_ratio{k}") for k in range(1, 7)])
    edges = bin_edges(redshift)
    rate = 10 ** -np.column_stack([np.zeros(len(ratios)), np.cumsum(ratios, axis=1)])
    masses = rate * np.diff(edges, axis=1)
    masses /= masses.sum(1, keepdims=True)
    formed = 0.4 * (Planck18.distmod(redshift[:2000]).value - column(galaxies.theta, "N")[:2000])
    surviving = (masses * surviving_fraction(edges)).sum(1)
    return masses, formed, surviving


def test_numbers_follow_the_mass_function_and_the_volume(galaxies):
    redshift, log_mass = column(galaxies.theta, "redshift"), galaxies.log_mass
    z_edges, m_edges = np.array([0.1, 0.5, 1, 1.5, 2, 3, 4, 6.0]), np.array([9.0, 9.5, 10, 10.5, 11, 11.5])
    counts = np.histogram2d(redshift, log_mass, bins=(z_edges, m_edges))[0]
    expected, whole = np.zeros_like(counts), 0.0
    for low, high in [(0.002, 0.1), *pairwise(z_edges)]:
        z = np.linspace(low, min(high, 5.999), 60)
        mass = np.linspace(9.0, 12.5, 701)
        density = mass_function(mass[None, :], z[:, None]) * volume_element(z)[:, None]
        whole += np.trapezoid(np.trapezoid(density, mass, axis=1), z)
        if low < 0.1:
            continue
        for j, (m_low, m_high) in enumerate(pairwise(m_edges)):
            inside = (mass >= m_low - 1e-9) & (mass <= m_high + 1e-9)
            part = np.trapezoid(np.trapezoid(density[:, inside], mass[inside], axis=1), z)
            expected[np.searchsorted(z_edges, low), j] = part
    expected *= N_DRAWS / whole
    # Poisson noise, and 1 percent for the finite cells.
    assert np.all(np.abs(counts - expected) < ERRORS * np.sqrt(expected + 1) + 0.01 * expected)


def test_star_forming_galaxies_lie_on_the_sequence(galaxies, histories):
    masses, _, surviving = histories
    recomputed = np.log10(masses[:, :2].sum(1) / 0.1) - 9 - np.log10(surviving) + galaxies.log_mass
    difference = recomputed - galaxies.log_sfr
    assert np.quantile(np.abs(difference), 0.9) < 1e-3, "bins hold the rate that was drawn"
    assert np.mean(np.abs(difference) > 0.05) < 0.03, "but where more than all stars would be that young"
    redshift = column(galaxies.theta, "redshift")
    expected = relations.star_forming_sequence(galaxies.log_mass, redshift)
    for low, high in ((0.1, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 6.0)):
        chosen = ~galaxies.quiescent & (redshift > low) & (redshift < high)
        error = 1.2533 * 0.30 / np.sqrt(chosen.sum())  # of the median of a normal of width 0.30
        assert abs(np.median((galaxies.log_sfr - expected)[chosen])) < ERRORS * error
        assert np.std((galaxies.log_sfr - expected)[chosen]) == pytest.approx(
            0.30, abs=ERRORS * 0.30 / np.sqrt(2 * chosen.sum())
        )


def test_surviving_mass_is_the_drawn_one(galaxies, histories):
    _, formed, surviving = histories
    assert np.allclose(formed + np.log10(surviving[:2000]), galaxies.log_mass[:2000], atol=3e-5)
    assert surviving.min() > 0.5 and surviving.max() < 0.87


def test_quiescent_galaxies_are_as_many_as_published_and_have_stopped(galaxies, histories):
    masses = histories[0]
    redshift = column(galaxies.theta, "redshift")
    for low, high in ((9.5, 10.0), (10.0, 10.5), (10.5, 11.0), (11.0, 11.5)):
        chosen = (galaxies.log_mass > low) & (galaxies.log_mass < high)
        expected = relations.quiescent_fraction(galaxies.log_mass, redshift)[chosen]
        error = np.sqrt(np.sum(expected * (1 - expected))) / chosen.sum()
        assert abs(galaxies.quiescent[chosen].mean() - expected.mean()) < ERRORS * error
    age = 0.5 * (bin_edges(redshift)[:, 1:] + bin_edges(redshift)[:, :-1])
    share = (masses * age).sum(1) / relations.age_of_universe(redshift)
    assert np.median(share[galaxies.quiescent]) > np.median(share[~galaxies.quiescent]) + 0.1
    oldest = column(galaxies.theta, "logsfr_ratio6")[~galaxies.quiescent]
    assert np.mean(oldest > 0) > 0.9, "star-forming galaxies rise early"


def test_metallicities_dust_and_ionisation_follow_their_relations(galaxies):
    redshift = column(galaxies.theta, "redshift")
    gas = column(galaxies.theta, "gaslog10Z") - relations.gas_metallicity(galaxies.log_mass, galaxies.log_sfr)
    assert abs(np.median(gas)) < ERRORS * 1.2533 * 0.10 / np.sqrt(N_DRAWS)
    median, low, high = relations.stellar_metallicity(galaxies.log_mass, redshift, galaxies.quiescent)
    # Half of the draws lie below the published median, but for what the walls of the box cut off.
    below, above = ndtr((-1.98 - median) / low), ndtr((0.19 - median) / high)
    expected = (0.5 - below) / (above - below)
    found = np.mean(column(galaxies.theta, "log10Z") < median)
    assert abs(found - expected.mean()) < ERRORS * 0.5 / np.sqrt(N_DRAWS)
    forming = ~galaxies.quiescent
    excess = galaxies.log_sfr - relations.star_forming_sequence(galaxies.log_mass, redshift)
    depth = relations.dust_depth(galaxies.log_mass, redshift, excess)
    ratio = np.log10(column(galaxies.theta, "dust2") / depth)[forming]
    assert abs(np.median(ratio)) < ERRORS * 1.2533 * 0.25 / np.sqrt(forming.sum())
    clouds = column(galaxies.theta, "dust1_fraction")
    assert abs(clouds.mean() - 1.0) < ERRORS * 0.3 / np.sqrt(N_DRAWS)


def test_agn_are_as_frequent_as_their_accretion_rates_say(galaxies):
    redshift = column(galaxies.theta, "redshift")
    starlight = 1e10 * 10 ** (galaxies.log_sfr - galaxies.log_mass) + relations.old_starlight(redshift)
    rate = column(galaxies.theta, "lnfagn") / np.log(10) + np.log10(starlight / relations.EDDINGTON)
    excess = galaxies.log_sfr - relations.star_forming_sequence(galaxies.log_mass, redshift)
    level = relations.agn_level(redshift, galaxies.quiescent, excess)
    for limit in (-2.5, -2.0):
        expected = relations.accretion_survival(np.full_like(level, limit), level)
        found = np.mean(rate > limit)
        error = np.sqrt(expected.mean() / N_DRAWS)
        # Rates beyond the box of f_AGN (a few in a thousand) are drawn again.
        assert abs(found - expected.mean()) < ERRORS * error + 0.08 * expected.mean()


def test_draws_lie_strictly_inside_the_box(galaxies):
    assert galaxies.theta.dtype == np.float32 and np.all(np.isfinite(galaxies.theta))
    for index, parameter in enumerate(POP_COSMOS.parameters):
        assert galaxies.theta[:, index].min() > parameter.lower
        assert galaxies.theta[:, index].max() < parameter.upper


def test_bins_are_those_of_the_synthesis():
    redshift = np.array([0.05, 1.0, 5.9])
    for row, z in zip(bin_edges(redshift), redshift, strict=True):
        assert np.allclose(row, star_formation.bin_edges(jnp.float32(Planck18.age(z).value)), rtol=3e-5)


def test_surviving_fraction_against_its_formula():
    ages = np.linspace(1.0, 1.001, 3)[None, :]
    assert surviving_fraction(ages)[0] == pytest.approx(1 - 0.05 * np.log1p(1000 / 1.4), abs=1e-4)


def test_specific_rates_are_met_for_extreme_histories():
    rng = np.random.default_rng(3)
    wanted = np.repeat([-12.5, -11.0, -10.0, -9.0, -8.5], 400)
    redshift = np.tile(np.linspace(0.05, 5.5, 400), 5)
    quiescent = wanted < -10.5
    drawn = draw_histories(rng, redshift, wanted, np.maximum(wanted, -9.8), quiescent, np.full(2000, 0.3))
    masses = 10 ** -np.column_stack([np.zeros(2000), np.cumsum(drawn.ratios, axis=1)])
    masses *= np.diff(bin_edges(redshift), axis=1)
    found = np.log10(masses[:, :2].sum(1) / masses.sum(1) / drawn.surviving) - 8.0
    assert np.quantile(np.abs(found - wanted), 0.97) < 0.01
    assert np.abs(drawn.ratios).max() < 5.0


@pytest.fixture(scope="module")
def limited():
    return draw_reference(400, seed=7, magnitude_limit=24.0)


def test_limited_draws_are_bright_reproducible_and_nested(limited):
    from popcosmos_hpc.model.bundle import load_bundle
    from popcosmos_hpc.training.reference_population import magnitudes

    emulator = load_bundle("kids9").emulator(("i",))
    assert limited.shape == (400, 16) and limited.dtype == np.float32
    assert magnitudes(emulator, limited).max() < 24.0
    assert np.array_equal(draw_reference(200, seed=7, magnitude_limit=24.0), limited[:200])
    assert not np.array_equal(draw_reference(10, seed=8, magnitude_limit=24.0), limited[:10])


def test_table_names_its_sources_and_density(tmp_path, limited):
    path = write_draws(tmp_path / "draws.parquet", 300, seed=7, magnitude_limit=24.0)
    table = pq.read_table(path)
    facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert tuple(table.column_names) == POP_COSMOS.names
    assert np.array_equal(
        np.column_stack([table[name].to_numpy() for name in POP_COSMOS.names]), limited[:300]
    )
    assert facts["seed"] == "7" and facts["band"] == "i" and "not the population" in facts["made_of"]
    assert "1910.04168" in facts["source mass function"]
    # LSST Science Book, eq. 3.7: 46 x 10^(0.31 (i - 25)) galaxies per square arcmin, good to some 20 percent.
    published = 46 * 10 ** (0.31 * (24.0 - 25.0))
    assert float(facts["galaxies_per_square_degree"]) / 3600 == pytest.approx(published, rel=0.35)


def test_impossible_requests_are_refused():
    with pytest.raises(ConfigurationError, match="positive number"):
        draw_reference(0, seed=1)
    with pytest.raises(BundleError, match="bands among"):
        draw_reference(10, seed=1, band="no such band")
