"""Relations against numbers printed in their papers, and against the package's own physics."""

import jax.numpy as jnp
import numpy as np
import pytest
from astropy.cosmology import Planck18

from popcosmos_hpc.model.mass_function import log_mass_function
from popcosmos_hpc.sps.attenuation import birth_cloud_curve, diffuse_curve
from popcosmos_hpc.training import galaxy_relations as relations
from popcosmos_hpc.training.number_density import mass_function, schechter_pair, volume_element

# Weaver et al. 2023: number densities of all galaxies, 1e-4 per dex and Mpc^3, and one-sigma limits.
WEAVER_4 = ((9.625, 10.62, 8.87, 12.37), (10.125, 3.35, 2.61, 4.10), (10.625, 0.964, 0.653, 1.28))
WEAVER_5 = ((9.625, 4.09, 3.10, 5.09), (10.125, 1.91, 1.27, 2.55), (10.625, 0.294, 0.150, 0.438))
# Koprowski et al. 2026: quiescent fractions per bin of redshift and mass.
QUIESCENT = (
    (0.75, 9.75, 0.099), (0.75, 10.75, 0.435), (1.25, 10.25, 0.205), (1.75, 10.75, 0.285),
    (2.25, 10.25, 0.090), (3.5, 10.75, 0.166), (4.5, 10.25, 0.071),
)  # fmt: skip


def at(relation, *values):
    """A relation at one galaxy."""
    arrays = np.broadcast_arrays(*(np.atleast_1d(value) for value in values))
    found = relation(*arrays)
    return tuple(part[0] for part in found) if isinstance(found, tuple) else found[0]


def test_mass_function_is_that_of_the_analytic_prior_below_redshift_3():
    for redshift in (0.2, 0.7, 1.6, 2.4, 3.0):
        for log_mass in (8.0, 9.5, 11.0, 12.0):
            expected = np.exp(float(log_mass_function(jnp.float32(log_mass), jnp.float32(redshift))))
            assert at(mass_function, log_mass, redshift) == pytest.approx(expected, rel=3e-4)


@pytest.mark.parametrize(("redshift", "points"), [(4.0, WEAVER_4), (5.0, WEAVER_5)])
def test_distant_mass_function_passes_through_published_points(redshift, points):
    for log_mass, value, low, high in points:
        found = 1e4 * float(at(mass_function, log_mass, redshift))
        assert low - (value - low) <= found <= high + (high - value), f"two sigma at {log_mass}"


def test_mass_functions_join_smoothly_and_never_rise_beyond_redshift_3():
    log_mass, redshift = np.linspace(8, 12, 41), np.linspace(2.6, 6.0, 341)
    log_phi = np.log10(mass_function(log_mass[:, None], redshift[None, :]))
    step = np.diff(log_phi, axis=1)
    assert np.abs(step[log_mass < 11.0]).max() < 0.03, "per 0.01 in redshift"
    assert step[:, redshift[:-1] >= 3.0].max() <= 1e-12
    assert schechter_pair(np.array(0.0)).phi_1 == schechter_pair(np.array(0.2)).phi_1


def test_volume_element_integrates_to_the_volume_of_the_universe():
    redshift = np.linspace(1e-4, 2.0, 2001)
    volume = np.trapezoid(volume_element(redshift), redshift)
    assert volume == pytest.approx(Planck18.comoving_volume(2.0).value, rel=1e-4)


def test_interpolated_cosmology():
    redshift = np.geomspace(0.003, 6.0, 50)
    assert np.allclose(relations.age_of_universe(redshift), Planck18.age(redshift).value, rtol=2e-5)
    assert np.allclose(relations.distance_modulus(redshift), Planck18.distmod(redshift).value, atol=2e-4)


def test_star_forming_sequence_has_the_published_ridge():
    # Leja et al. 2022, eq. 10 with the coefficients of Table 1, worked out by hand at z = 1.
    level, below, above, knee = 1.1690, 0.95056, 0.26666, 10.5577
    assert at(relations.star_forming_sequence, 10.0, 1.0) == pytest.approx(
        level + below * (10 - knee), abs=2e-4
    )
    assert at(relations.star_forming_sequence, 11.0, 1.0) == pytest.approx(
        level + above * (11 - knee), abs=2e-4
    )


def test_ridge_lies_below_sequences_of_infrared_light_by_the_published_amount():
    # Leja et al. 2022: 0.2 to 0.5 dex below UV + IR sequences, near the masses that form most stars.
    masses, redshifts = np.meshgrid((10.0, 10.5), (0.5, 1.0, 1.5, 2.0, 4.0, 6.0))
    offset = relations.star_forming_sequence(masses, redshifts) - relations.popesso_sequence(
        masses, redshifts
    )
    assert offset.min() > -0.55 and offset.max() < -0.02
    assert -0.45 < offset.mean() < -0.15


def test_popesso_sequence_against_its_own_limits():
    # Low masses: constant specific rate; at z ~ 2 (3.3 Gyr) and 10^10.5, about 50 Msun/yr (their fig. 2).
    slope = at(relations.popesso_sequence, 8.7, 1.0) - at(relations.popesso_sequence, 8.6, 1.0)
    assert slope == pytest.approx(0.099, abs=0.002)
    assert 1.55 < at(relations.popesso_sequence, 10.5, 2.0) < 1.85


def test_sequence_is_continuous_where_relations_are_joined():
    grid = np.linspace(0.01, 6.0, 3000)
    for log_mass in (8.0, 9.5, 10.5, 11.5):
        assert (
            np.abs(np.diff(relations.star_forming_sequence(np.full_like(grid, log_mass), grid))).max() < 0.01
        )
    masses = np.linspace(7.0, 12.0, 3000)
    for redshift in (0.1, 1.0, 3.0, 5.0):
        assert (
            np.abs(np.diff(relations.star_forming_sequence(masses, np.full_like(masses, redshift)))).max()
            < 0.003
        )


@pytest.mark.parametrize(("redshift", "log_mass", "fraction"), QUIESCENT)
def test_quiescent_fraction_against_its_bins(redshift, log_mass, fraction):
    assert at(relations.quiescent_fraction, log_mass, redshift) == pytest.approx(fraction, abs=0.05)


def test_quiescent_fraction_is_held_outside_its_fit():
    assert at(relations.quiescent_fraction, 10.5, 0.1) == at(relations.quiescent_fraction, 10.5, 0.5)
    assert at(relations.quiescent_fraction, 7.0, 1.0) == at(relations.quiescent_fraction, 9.0, 1.0)
    assert np.max(relations.quiescent_fraction(np.linspace(7, 13, 200), np.full(200, 0.6))) <= 0.95


def test_stellar_metallicities_of_massive_dwarf_and_distant_galaxies():
    median, low, high = at(relations.stellar_metallicity, 10.87, 0.0, True)
    assert (median, low, high) == pytest.approx((0.07, 0.21, 0.17))
    dwarf, _, _ = at(relations.stellar_metallicity, 7.5, 0.0, False)
    kirby = -1.69 + 0.30 * 1.5  # Kirby et al. 2013, eq. 4
    assert dwarf == pytest.approx(kirby, abs=0.35), "iron of dwarf galaxies and metals of SDSS differ in zero"
    # Cullen et al. 2019: log Z/Zsun = log 0.27 at 10^10.2 Msun, z = 3.5, on a scale with Zsun = 0.0142.
    young, _, _ = at(relations.stellar_metallicity, 10.2, 3.5, False)
    assert young == pytest.approx(np.log10(0.27), abs=0.25)
    assert at(relations.stellar_metallicity, 10.2, 6.0, False)[0] == young


def test_gas_metallicity_against_measured_medians():
    # Curti et al. 2020: medians of SDSS galaxies at the rates of the local sequence.
    for log_mass, oxygen in ((8.55, 8.398), (9.0, 8.524), (9.6, 8.648), (10.2, 8.748), (11.0, 8.795)):
        rate = at(relations.star_forming_sequence, log_mass, 0.07)
        found = at(relations.gas_metallicity, log_mass, rate) + relations.SOLAR_OXYGEN
        assert found == pytest.approx(oxygen, abs=0.08)
    # Sanders et al. 2021 at z ~ 2.3: 8.51 at 10^10 Msun, slope 0.30.
    for log_mass in (9.5, 10.0, 10.5):
        rate = at(relations.star_forming_sequence, log_mass, 2.3)
        found = at(relations.gas_metallicity, log_mass, rate) + relations.SOLAR_OXYGEN
        assert found == pytest.approx(8.51 + 0.30 * (log_mass - 10), abs=0.12)


def test_ionisation_rises_as_observed():
    # Papovich et al. 2022: +0.25 dex at z ~ 1.1 and +0.35 dex at z ~ 1.9 at fixed mass, against z ~ 0.2.
    def ionisation(redshift, log_mass=9.8):
        rate = at(relations.star_forming_sequence, log_mass, redshift)
        gas = at(relations.gas_metallicity, log_mass, rate)
        return at(relations.ionisation_parameter, rate - log_mass, gas)

    assert ionisation(1.1) - ionisation(0.2) == pytest.approx(0.25, abs=0.1)
    assert ionisation(1.9) - ionisation(0.2) == pytest.approx(0.35, abs=0.1)
    assert at(relations.ionisation_parameter, -10.0, 0.0) == pytest.approx(-3.1)


def test_dust_gives_back_the_extinction_of_h_alpha():
    wave = jnp.array([6563.0])
    per_depth = 1.086 * float((diffuse_curve(wave, jnp.zeros(())) + birth_cloud_curve(wave))[0])
    for log_mass, extinction in ((9.0, 0.34), (10.0, 0.91), (11.0, 1.70)):
        depth = at(relations.dust_depth, log_mass, 1.0, 0.0)
        assert depth * per_depth == pytest.approx(extinction, rel=0.03)
    assert at(relations.dust_depth, 10.0, 5.5, 0.0) == pytest.approx(
        0.5 * at(relations.dust_depth, 10.0, 3.0, 0.0)
    )


def test_attenuation_slopes_have_the_published_total_to_selective_ratios():
    # R_V = 4.05 / (5.05 (4400/5500)^n - 4.05) of a modified Calzetti law (Salim et al. 2018, sect. 3).
    for log_mass, ratio in ((9.0, 2.61), (10.0, 2.99), (11.0, 3.47)):
        slope = at(relations.dust_slope, at(relations.dust_depth, log_mass, 0.1, 0.0))
        assert 4.05 / (5.05 * 0.8**slope - 4.05) == pytest.approx(ratio, abs=0.06)


def test_accretion_rates_are_a_distribution():
    for level in (1e-4, 1e-3, 1e-2):
        rates = relations.accretion_rate(np.linspace(1e-6, 1, 400), np.full(400, level))
        assert np.all(np.diff(rates) < 0)
        assert np.allclose(
            relations.accretion_survival(rates, np.full(400, level)), np.linspace(1e-6, 1, 400), rtol=1e-6
        )
    # Aird et al. 2012: A x (10^1.3 - 1) / (0.65 ln 10) between 1 percent of Eddington and Eddington, z = 0.6.
    level = at(relations.agn_level, 0.6, False, 0.0)
    between = at(relations.accretion_survival, -2.0, level) - at(relations.accretion_survival, 0.0, level)
    assert between == pytest.approx(10**-3.15 * (10**1.3 - 1) / (0.65 * np.log(10)), rel=1e-6)
    assert at(relations.agn_level, 0.6, True, 0.0) == pytest.approx(level / 2)
