"""The emulator of pop-cosmos's published networks, at small size with random weights."""

import dataclasses
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.cosmology import Planck18
from scipy.stats import gennorm

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.model.bundle import load_bundle, save_bundle
from popcosmos_hpc.model.features import continuum_features
from popcosmos_hpc.model.history import HISTORY
from popcosmos_hpc.model.network import initial_network
from popcosmos_hpc.model.photulator import (
    LineCorrections,
    PhotulatorEmulator,
    PhotulatorStack,
    SharedPhotometry,
    SurvivingMass,
)
from popcosmos_hpc.parameters import POP_COSMOS
from popcosmos_hpc.sps.cosmology import cosmology_table

BANDS = ("g", "r", "i")
CENTRES = np.array([[4700.0, 5000.0], [6200.0, 6500.0], [7700.0, 8000.0]])
WIDTHS = np.array([[300.0, 400.0], [350.0, 450.0], [400.0, 500.0]])
AMPLITUDES = np.array([[1.0, 2.0], [1.5, 0.5], [0.7, 0.9]])
POWERS = np.array([[8.0, 11.0], [9.0, 17.0], [2.0, 5.0]])
LINES = {"H-alpha": (6564.6, -0.34), "[O III]": (5008.24, 0.11), "[S III]": (9533.2, -1.0)}


def make_stack(rng, n_bands, hidden=(16, 16)):
    sizes = (15, *hidden, 1)
    pairs = list(pairwise(sizes))
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return PhotulatorStack(
        [array(n_bands, *pair) / np.sqrt(pair[0]) for pair in pairs],
        *([array(n_bands, pair[1]) for pair in pairs] for _ in range(3)),
        array(n_bands, 15), jnp.exp(array(n_bands, 15)), 5 + array(n_bands), jnp.exp(array(n_bands)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def emulator():
    rng = np.random.default_rng(0)
    network = initial_network(
        jax.random.PRNGKey(1), (16, 8, len(LINES)), (np.zeros(16), np.ones(16)), (np.zeros(3), np.ones(3))
    )
    wave, offset = (jnp.asarray(values, jnp.float32) for values in zip(*LINES.values(), strict=True))
    mixtures = (jnp.asarray(v, jnp.float32) for v in (AMPLITUDES, CENTRES, WIDTHS, POWERS))
    lines = LineCorrections(tuple(LINES), network, wave, offset, *mixtures)
    weight = [jnp.asarray(rng.normal(size=pair) / 4, jnp.float32) for pair in ((16, 8), (8, 1))]
    surviving = SurvivingMass(weight, [jnp.zeros(8), jnp.ones(1)], jnp.zeros(16), jnp.full(16, 10.0))
    return PhotulatorEmulator(
        BANDS, (0.0, 6.0), tuple(HISTORY), tuple(HISTORY.values()), POP_COSMOS,
        make_stack(rng, len(BANDS)), lines, surviving,
        jnp.asarray([0.0, 2.0, 6.0]), jnp.asarray([[0.01] * 3, [0.03] * 3, [0.03] * 3]),
        cosmology_table(n_nodes=1024),
    )  # fmt: skip


@pytest.fixture
def theta():
    rng = np.random.default_rng(3)
    value = {"N": 20.0, "log10Z": -0.4, "dust2": 0.5, "dust_index": -0.2, "dust1_fraction": 1.1,
             "lnfagn": -7.0, "lnagntau": 3.0, "gaslog10Z": -0.3, "gaslog10U": -2.4,
             "redshift": 0.45}  # fmt: skip
    value |= {f"logsfr_ratio{k}": rng.normal() / 3 for k in range(1, 7)}
    return jnp.asarray([value[name] for name in POP_COSMOS.names], jnp.float32)


fluxes = eqx.filter_jit(lambda emulator, theta: emulator(theta))
derived = eqx.filter_jit(lambda emulator, theta: emulator.derived(theta))


def forward(stack, band, theta):
    """Magnitude of one band, written out in float64."""
    x = np.array([v for name, v in zip(POP_COSMOS.names, theta, strict=True) if name != "N"], np.float64)
    x[7] = np.sqrt(x[7])
    h = (x - np.asarray(stack.input_shift[band])) / np.asarray(stack.input_scale[band])
    for layer in range(len(stack.weight)):
        weight, bias, alpha, beta = (
            np.asarray(getattr(stack, name)[layer][band], np.float64)
            for name in ("weight", "bias", "alpha", "beta")
        )
        a = h @ weight + bias
        h = (beta + (1 - beta) / (1 + np.exp(-alpha * a))) * a
    return float(h[0] * np.float64(stack.output_scale[band]) + np.float64(stack.output_shift[band]))


def test_flux_is_that_of_the_networks_plus_the_line_corrections(emulator, theta):
    lines = emulator.lines
    strength = 10 ** (-0.4 * np.asarray(lines.network(theta.at[8].set(jnp.sqrt(theta[8]))), np.float64))
    got = np.asarray(fluxes(emulator, theta))
    for band in range(len(BANDS)):
        expected = 10 ** (0.4 * (22.5 - forward(emulator.photometry, band, np.asarray(theta))))
        for line, (wave, offset) in enumerate(LINES.values()):
            observed = wave * (1 + float(theta[-1]))
            density = gennorm.pdf(observed, POWERS[band], CENTRES[band], WIDTHS[band])
            unit = 1e9 * 3.2143882024295685e-07 * observed
            expected += offset * unit * strength[line] * (AMPLITUDES[band] * density).sum()
        assert got[band] == pytest.approx(expected * 10**-8.0, rel=2e-5)


def test_selecting_bands_gives_the_same_fluxes(emulator, theta):
    some = emulator.select(("i", "g"))
    np.testing.assert_allclose(fluxes(some, theta), np.asarray(fluxes(emulator, theta))[[2, 0]], rtol=1e-6)
    assert some.bands == ("i", "g") and some.photometry.weight[0].shape[0] == 2
    np.testing.assert_array_equal(some.sigma(jnp.asarray(1.0)), np.float32([0.02, 0.02]))
    with pytest.raises(BundleError, match="NUV"):
        emulator.select(("g", "NUV"))


def test_brightness_follows_the_mass(emulator, theta):
    """One magnitude in N is a factor in flux, but for what the line network makes of N."""
    off = jnp.zeros_like(emulator.lines.offset)
    plain = eqx.tree_at(lambda e: e.lines.offset, emulator, off)
    np.testing.assert_allclose(fluxes(plain, theta.at[0].add(2.5)), 0.1 * fluxes(plain, theta), rtol=1e-5)


def test_derived_quantities(emulator, theta):
    values = dict(zip(emulator.derived_names, np.asarray(derived(emulator, theta)), strict=True))
    surviving = np.log10(float(emulator.surviving(theta)))
    assert values["log10_mass_formed"] == pytest.approx(
        -0.4 * (20.0 - Planck18.distmod(0.45).value), abs=1e-4
    )
    assert values["log10_mass"] == pytest.approx(values["log10_mass_formed"] + surviving, abs=1e-5)
    rate = values["log10_ssfr_100myr"] + values["log10_mass"]
    assert rate == pytest.approx(values["log10_sfr_100myr"], abs=1e-4)
    assert 0 < values["age_mass_weighted"] < 9.4


def test_gradients_are_finite_over_the_prior(emulator):
    """Also where every line is far outside a band, and its density zero."""
    rng = np.random.default_rng(5)
    lower = np.array([15.0 if p.name == "N" else p.lower for p in POP_COSMOS.parameters])
    upper = np.array([30.0 if p.name == "N" else p.upper for p in POP_COSMOS.parameters])
    draws = jnp.asarray(rng.uniform(lower, upper, (256, 16)), jnp.float32).at[:, 8].add(1e-3)
    jacobians = jax.jit(jax.vmap(jax.jacrev(lambda t: jnp.arcsinh(emulator(t)))))(draws)
    assert np.isfinite(np.asarray(jacobians)).all()


@pytest.mark.parametrize("shared", [False, True])
def test_a_bundle_restores_the_emulator(emulator, theta, tmp_path, shared):
    if shared:
        cosmology = cosmology_table(n_nodes=1024)
        pivots = jnp.asarray([4800.0, 6300.0, 7800.0])
        size = continuum_features(POP_COSMOS, cosmology, pivots, None, theta).shape[0]
        key, plain = jax.random.PRNGKey(2), (np.zeros(size), np.ones(size))
        network = initial_network(key, (size, 8, 3), plain, (np.full(3, 6.0), np.ones(3)))
        photometry = SharedPhotometry(network, pivots, cosmology)
        emulator = dataclasses.replace(emulator, photometry=photometry)
    facts, arrays = emulator.to_bundle()
    save_bundle(tmp_path / "b", {"name": "small", **facts}, arrays)
    restored = load_bundle(tmp_path / "b").emulator()
    assert restored.bands == BANDS and restored.lines.names == tuple(LINES)
    np.testing.assert_array_equal(fluxes(restored, theta), fluxes(emulator, theta))
    np.testing.assert_array_equal(derived(restored, theta), derived(emulator, theta))
    np.testing.assert_array_equal(restored.sigma(jnp.asarray(0.5)), emulator.sigma(jnp.asarray(0.5)))
    some = load_bundle(tmp_path / "b").emulator(("r",))
    np.testing.assert_allclose(fluxes(some, theta), fluxes(emulator, theta)[1:2], rtol=1e-6)
    assert load_bundle(tmp_path / "b").prior().space.names == POP_COSMOS.names
