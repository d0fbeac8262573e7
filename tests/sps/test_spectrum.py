import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.parameters import POP_COSMOS
from popcosmos_hpc.sps.filters import load_filter
from popcosmos_hpc.sps.spectrum import (
    NANOMAGGIES,
    build_photometer,
    build_sps,
    hat_weights,
    line_transmission,
    photometry,
)
from tests.synthetic import synthetic_grids

BANDS = [
    load_filter(f"b{c}", f"tophat:{c}:{w}")
    for c, w in ((4500, 1000), (6500, 1200), (9000, 1500), (15000, 3000))
]


@pytest.fixture(scope="module")
def sps():
    return build_sps(synthetic_grids(), POP_COSMOS)


@pytest.fixture(scope="module")
def photometer(sps):
    return build_photometer(sps, BANDS, 2.0)


def theta(**changes):
    values = dict.fromkeys(POP_COSMOS.names, 0.0)
    values |= {"log10Z": -0.5, "dust2": 0.5, "dust_index": -0.2, "dust1_fraction": 1.0, "lnfagn": -11.5}
    values |= {"lnagntau": 3.0, "gaslog10Z": -0.3, "gaslog10U": -2.5, "redshift": 0.5}
    values |= changes
    return jnp.asarray([values[name] for name in POP_COSMOS.names], jnp.float32)


def test_agn_without_templates_is_refused():
    with pytest.raises(ConfigurationError, match="torus templates"):
        build_sps(synthetic_grids(torus=False), POP_COSMOS)
    assert build_sps(synthetic_grids(torus=False), POP_COSMOS, agn=False).agn is False


def test_hat_weights_interpolate_and_clip():
    nodes = jnp.asarray([0.0, 1.0, 3.0])
    assert np.allclose(hat_weights(jnp.asarray(2.0), nodes), [0, 0.5, 0.5])
    assert np.allclose(hat_weights(jnp.asarray(-1.0), nodes), [1, 0, 0])
    assert np.allclose(hat_weights(jnp.asarray(9.0), nodes), [0, 0, 1])


def test_dust_returns_what_it_absorbs(sps):
    """Energy balance: what the screens take away reappears in the dust emission."""
    grids = synthetic_grids(upper=1e8)  # the axis must hold the dust emission
    wide = build_sps(grids, POP_COSMOS, agn=False)
    dusty, clear = theta(dust2=1.5), theta(dust2=0.0)
    total = lambda t: float(jnp.sum(wide.luminosity(t) * wide.pixel) + jnp.sum(wide.line_luminosities(t)))  # noqa: E731
    assert np.isclose(total(dusty), total(clear), rtol=2e-3)
    blue = wide.wave < 5000
    assert jnp.sum(wide.luminosity(dusty)[blue]) < 0.5 * jnp.sum(wide.luminosity(clear)[blue])


def test_agn_adds_its_fraction_of_the_bolometric_luminosity():
    wide = build_sps(synthetic_grids(upper=1e8), POP_COSMOS)
    off, on = (
        theta(dust2=0.0, lnfagn=-30.0),
        theta(dust2=0.0, lnfagn=float(np.log(0.5)), lnagntau=float(np.log(5.0))),
    )
    added = float(jnp.sum((wide.luminosity(on) - wide.luminosity(off)) * wide.pixel))
    bolometric = float(jnp.sum(wide.weights(on).stars * wide.bolometric))
    assert np.isclose(added, 0.5 * bolometric, rtol=0.01)


def test_flat_spectrum_has_equal_magnitudes(sps, photometer):
    """A constant L_nu of 1 Lsun/Hz gives the same flux in all bands, (1 + z) times the one at rest."""
    flat = 2.99792458e18 / sps.wave**2
    for redshift in (0.0, 0.313, 1.7):
        flux = photometer.continuum(sps, flat, jnp.asarray(redshift))
        assert np.allclose(flux, NANOMAGGIES * (1 + redshift), rtol=2e-4)


def test_line_flux_in_a_band(sps, photometer):
    luminosity = jnp.zeros(7).at[5].set(3.0)
    flux = photometer.lines(sps.line_wave, luminosity, jnp.asarray(0.0))
    band = BANDS[1]  # a top-hat: the transmission over its integral is 1 / ln(high / low)
    expected = NANOMAGGIES * 3.0 * 6564.6 / 2.99792458e18 / np.log(band.wave[-1] / band.wave[0])
    assert np.isclose(flux[1], expected, rtol=0.02)
    assert np.all(np.asarray(flux)[[0, 2, 3]] == 0)


def test_lines_cross_bands_with_redshift(sps, photometer):
    halpha = jnp.zeros(7).at[5].set(1.0)
    band_of = [
        int(np.argmax(photometer.lines(sps.line_wave, halpha, jnp.asarray(z)))) for z in (0.0, 0.37, 1.3)
    ]
    assert band_of == [1, 2, 3]


def test_lyman_alpha_counts_as_absorbed(sps):
    transmission = line_transmission(sps, jnp.asarray(4.0))
    assert transmission[0] < 0.7 and np.all(transmission[1:] == 1.0)


def test_photometry_adds_lines_and_responds_to_gas(sps, photometer):
    young = theta(logsfr_ratio1=2.0, redshift=0.37)  # puts Halpha into the third band
    without = photometry(sps, photometer, young, jnp.zeros(7))
    full = photometry(sps, photometer, young)
    assert np.all(full >= without) and full[2] > 1.01 * without[2]
    metal_poor = photometry(sps, photometer, theta(logsfr_ratio1=2.0, redshift=0.37, gaslog10Z=-2.0))
    assert np.any(metal_poor < 0.999 * full)
    assert np.all(np.isfinite(jax.jacfwd(lambda t: photometry(sps, photometer, t))(young)))


def test_axis_that_misses_a_filter_is_refused(sps):
    with pytest.raises(ConfigurationError, match="wavelength"):
        build_photometer(sps, [load_filter("far", "tophat:40000:2000")], 2.0)
    with pytest.raises(ConfigurationError, match="wavelength"):
        build_photometer(sps, [load_filter("blue", "tophat:3000:200")], 6.0)
