import jax.numpy as jnp
import numpy as np
import pytest
from astropy.cosmology import Planck18
from hypothesis import given, settings
from hypothesis import strategies as st

from popcosmos_hpc.sps.attenuation import birth_cloud_curve, calzetti_curve, diffuse_curve
from popcosmos_hpc.sps.cosmology import age_at, cosmology_table, distance_modulus_at
from popcosmos_hpc.sps.igm import madau_transmission
from popcosmos_hpc.sps.star_formation import age_weights, bin_edges, bin_masses, derived_history

TABLE = cosmology_table()


@pytest.mark.parametrize("redshift", [0.001, 0.02, 0.5, 2.0, 6.0])
def test_cosmology_table(redshift):
    assert np.isclose(age_at(TABLE, jnp.asarray(redshift)), Planck18.age(redshift).value, rtol=1e-4)
    exact = Planck18.distmod(redshift).value
    assert abs(distance_modulus_at(TABLE, jnp.asarray(redshift)) - exact) < 2e-3


def test_bin_edges_of_the_reference():
    edges = np.asarray(bin_edges(jnp.asarray(10.0)))
    middle = 10 ** (np.log10(0.1) + np.arange(5) / 4 * (np.log10(8.5) - np.log10(0.1)))
    assert np.allclose(edges, [0, 0.03, *middle, 10.0], rtol=1e-5)


def test_equal_ratios_form_mass_in_proportion_to_time():
    edges = bin_edges(jnp.asarray(8.0))
    masses = bin_masses(jnp.zeros(6), edges)
    assert np.allclose(masses, np.diff(edges) / 8.0, rtol=1e-5)
    specific, age = derived_history(masses, edges)
    assert np.isclose(specific, np.log10(0.1 / 8.0 / 0.1) - 9, atol=1e-4)
    assert np.isclose(age, 4.0, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.floats(0.9, 13.7))
def test_masses_and_weights_sum_to_one(ratios, age):
    edges = bin_edges(jnp.asarray(age, jnp.float32))
    masses = bin_masses(jnp.asarray(ratios, jnp.float32), edges)
    grid = jnp.linspace(0.0, 14.0, 60)
    weights = age_weights(masses, edges, grid)
    assert abs(float(masses.sum()) - 1) < 1e-5
    assert abs(float(weights.sum()) - 1) < 1e-5
    assert float(weights.min()) >= -1e-6


def test_a_ratio_raises_the_younger_bin():
    edges = bin_edges(jnp.asarray(8.0))
    masses = bin_masses(jnp.zeros(6).at[0].set(1.0), edges)
    rate = masses / jnp.diff(edges)
    assert np.isclose(rate[0] / rate[1], 10.0, rtol=1e-4)


def test_attenuation_is_normalised_in_v_and_has_a_bump():
    wave = jnp.asarray([2175.0, 5500.0, 1500.0, 22000.0])
    assert abs(float(calzetti_curve(wave)[1]) - 1) < 0.01
    flat, steep = diffuse_curve(wave, jnp.asarray(0.0)), diffuse_curve(wave, jnp.asarray(-0.7))
    assert abs(float(flat[1]) - 1) < 0.03
    assert steep[0] > flat[0] and steep[2] > flat[2] and steep[3] < flat[3]
    # The bump adds E_b / 4.05 = (0.85 - 1.9 n) / 4.05 at its centre.
    bare = calzetti_curve(wave)[0]
    assert np.isclose(flat[0] - bare, 0.85 / 4.05, rtol=1e-3)
    assert np.allclose(birth_cloud_curve(wave), 5500.0 / wave)


def test_igm():
    wave = np.array([800.0, 1000.0, 1200.0, 1216.0, 1500.0])
    assert np.all(madau_transmission(wave, 3.0)[3:] == 1.0)
    blue = [madau_transmission(wave, z)[:3] for z in (0.5, 2.0, 4.0, 6.0)]
    assert np.all(np.diff(blue, axis=0) < 0)
    # Between Lyman-beta and Lyman-alpha only Lyman-alpha (eq. 12) and metals absorb.
    x = 4 * 1110.0 / 1215.67
    expected = np.exp(-0.0036 * x**3.46 - 0.0017 * x**1.68)
    assert np.isclose(madau_transmission(np.array([1110.0]), 3.0)[0], expected)
