"""Parity with the release of pop-cosmos (MIT licence): photometry, lines, surviving mass and noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import gennorm

from popcosmos_hpc.model.bundle import load_bundle, load_uncertainty
from popcosmos_hpc.model.noise import LN_NANOMAGGIES
from popcosmos_hpc.training.published_archive import read_numpy, read_pickle, read_torch_archive
from popcosmos_hpc.training.published_calibration import COSMOS_BANDS, LINE_OFFSETS
from popcosmos_hpc.training.published_import import import_release
from tests.published_models import exact_transport

# Magnitudes for N = 0 from a float64 forward pass of the published weights, with dust2 = 0.25.
VECTOR = [0, -0.3, 0, 0, 0, 0, 0, 0, 0.25, -0.1, 1, np.log(1e-4), 3, -0.3, -2.5, 1]
MAGNITUDES = [
    5.95411, 5.82603, 5.45079, 4.74503, 4.33157, 4.01848, 3.96473, 3.78900, 3.61760, 3.40328,
    5.89390, 5.86819, 5.85191, 5.80732, 5.71767, 5.57201, 5.43432, 5.30988, 5.24025, 4.86759, 4.73390,
    4.45626, 5.22716, 4.44732, 3.28320, 3.61247,
]  # fmt: skip

# Best fit of Farmer 5963 and its noiseless fluxes [nanomaggies] as the demonstration prints them: to four
# digits, with lines, and with zero points that are known only by comparison with such fluxes.
GALAXY = [20.0272, -1.4193, 0.1677, 0.1611, 0.1254, -0.0325, -0.1381, -0.0569, 0.4827, 0.3139, 0.8754,
          -1.3199, 3.0758, -1.3194, -1.9458, 1.2390]  # fmt: skip
FLUXES = [
    0.0911, 0.1041, 0.1187, 0.1365, 0.2211, 0.2474, 0.2406, 0.2753, 0.3222, 0.3930, 0.0934, 0.0921, 0.0985,
    0.0985, 0.0966, 0.0954, 0.1109, 0.1354, 0.1193, 0.1218, 0.1254, 0.1372, 0.1210, 0.1223, 0.4129, 0.4119,
]  # fmt: skip
ZERO_POINTS = [
    1.0074, 1.0837, 1.0737, 1.0180, 1.0207, 1.0467, 0.9975, 1.0023, 0.9687, 1.0399, 0.9747, 0.9705, 1.0187,
    1.0066, 0.9922, 0.9274, 1.0108, 1.1297, 0.9753, 0.9679, 0.9634, 0.9189, 0.9855, 0.9280, 0.9581, 0.9192,
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "data" / "pop_cosmos_release"


@pytest.fixture(scope="module")
def bundles(folder, tmp_path_factory):
    imported = import_release(folder, tmp_path_factory.mktemp("bundles"))
    assert [path.name for path in imported.bundles] == ["pop_cosmos", "pop_cosmos_uncertainty"]
    return imported.bundles


@pytest.fixture(scope="module")
def emulator(bundles):
    return load_bundle(bundles[0]).emulator()


@pytest.fixture(scope="module")
def noise(bundles):
    return load_uncertainty(bundles[1])


def test_the_reference_vector(emulator):
    assert emulator.bands == tuple(COSMOS_BANDS) and emulator.redshift_range == (0.0, 6.0)
    magnitudes = emulator.photometry(emulator.space, jnp.asarray(VECTOR, jnp.float32))
    np.testing.assert_allclose(magnitudes, MAGNITUDES, atol=1e-4)


def test_the_stack_equals_the_plain_arrays(emulator, folder):
    plain = np.load(folder / "photulators_stacked.npz", allow_pickle=False)
    for ours, theirs in (("weight", "W"), ("bias", "b"), ("alpha", "alphas"), ("beta", "betas")):
        layers = getattr(emulator.photometry, ours)
        assert len(layers) == 5
        for index, layer in enumerate(layers):
            np.testing.assert_array_equal(layer, plain[f"{theirs}.{index}"])
    for ours, theirs in (("input", "parameters"), ("output", "magnitudes")):
        for part in ("shift", "scale"):
            np.testing.assert_array_equal(
                getattr(emulator.photometry, f"{ours}_{part}"), plain[f"{theirs}_{part}"]
            )


def test_the_printed_galaxy(emulator):
    ratio = np.asarray(emulator(jnp.asarray(GALAXY, jnp.float32))) * ZERO_POINTS / FLUXES
    assert np.abs(ratio - 1).max() < 0.01
    assert np.abs(ratio / np.median(ratio) - 1).max() < 0.003


def test_the_printed_galaxy_needs_its_lines(emulator):
    without = dataclasses.replace(
        emulator, lines=dataclasses.replace(emulator.lines, offset=0 * emulator.lines.offset)
    )
    ratio = np.asarray(without(jnp.asarray(GALAXY, jnp.float32))) * ZERO_POINTS / FLUXES
    assert np.abs(ratio / np.median(ratio) - 1).max() > 0.03


def test_line_fluxes_from_the_raw_arrays(emulator, folder):
    """Every line that has an offset, in every band, written out in float64."""
    root = folder / "trained_models"
    lines = root / "emline_speculator_models"
    state, basis = read_torch_archive(lines / "speculator-emlinesabsmags"), read_numpy(lines / "PCABasis.npz")
    p = [np.asarray(state[f"params.{k}"], np.float64) for k in range(14)]
    theta = np.array(GALAXY)
    x = theta.copy()
    x[8] = np.sqrt(x[8])
    h = (x - basis["parameters_shift"]) / basis["parameters_scale"]
    for k in range(3):
        a = h @ p[k] + p[4 + k]
        h = (p[11 + k] + (1 - p[11 + k]) / (1 + np.exp(-p[8 + k] * a))) * a
    components = (h @ p[3] + p[7]) * basis["pca_scale"] + basis["pca_shift"]
    spectrum = (
        components @ basis["pca_transform_matrix"] * basis["log_spectrum_scale"] + basis["log_spectrum_shift"]
    )
    elams = read_numpy(lines / "elams.npy")
    expected = np.zeros((26, len(LINE_OFFSETS)))
    for row, band in enumerate(COSMOS_BANDS):
        a, s, b, m = read_numpy(root / "emline_bandpass_models" / f"line_gengmmcoeffs_{band}.npy").reshape(
            4, 2
        )
        for column, line in enumerate(LINE_OFFSETS):
            observed = line.wave * (1 + theta[-1])
            strength = 10 ** (-0.4 * spectrum[np.argmin(np.abs(elams - line.wave))])
            passed = (a * gennorm.pdf(observed, b, m, s)).sum()
            expected[row, column] = 1e9 * 3.2143882024295685e-07 * observed * strength * passed
    got = emulator.lines.fluxes(emulator.space, jnp.asarray(GALAXY, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-4 * expected.max())
    np.testing.assert_allclose(emulator.lines.offset, [line.offset for line in LINE_OFFSETS], rtol=1e-6)


def test_line_offsets_are_the_published_ones():
    """As rounded in print; two more digits are in the release's constants."""
    printed = [0.0012, 0.0025, 0.0016, -0.60174, -1, 0.3242, -1, -0.14095, 0.0025, -0.51486, 0.26191,
               -0.08018, -0.33123, -0.00215, -0.5656, -0.34093, 0.11365]  # fmt: skip
    np.testing.assert_allclose([line.offset for line in LINE_OFFSETS], printed, atol=5.1e-5)


def test_surviving_mass_from_the_raw_arrays(emulator, folder):
    root = folder / "trained_models"
    shift, scale = read_pickle(root / "stellar_mass_parameter_shift-scale.pkl")
    h = (np.array(GALAXY) - shift) / scale
    layers = list(read_torch_archive(root / "stellar_mass_emulator.pt").state["_modules"].values())
    assert len(layers) == 6
    for layer in layers[::2]:
        h = np.tanh(layer.get("weight").astype(np.float64) @ h + layer.get("bias"))
    assert 0.58 < h[0] < 0.71
    assert float(emulator.surviving(jnp.asarray(GALAXY, jnp.float32))) == pytest.approx(h[0], abs=2e-5)


def test_noise_transport_from_the_raw_arrays(noise, folder):
    """The published network in an adaptive solver, against ours with many steps and with those chosen."""
    state = read_torch_archive(folder / "trained_models" / "noiseModel.pt")
    model = state.get("model")
    modules = model.get("model").get("NN").state["_modules"].values()
    layers = [(layer.get("weight"), layer.get("bias")) for layer in modules]
    schedule = ("VPSDE", 0.1, 20.0, float(model.get("sde").get("epsilon")))
    rng = np.random.default_rng(8)
    u = rng.normal(size=(3, 26))
    magnitude = model.get("conditional_shift") + rng.normal(size=(3, 1)) * model.get("conditional_scale")
    softening = np.asarray(noise.softening)
    flux = 2 * softening * np.sinh(-magnitude / 1.0857362 - np.log(softening) + LN_NANOMAGGIES)
    fine = dataclasses.replace(noise, diffusion=dataclasses.replace(noise.diffusion, n_steps=384))
    run = lambda m: np.log(np.asarray(jax.jit(jax.vmap(m.transport))(jnp.asarray(u, jnp.float32), flux)))  # noqa: E731
    condition = (magnitude - model.get("conditional_shift")) / model.get("conditional_scale")
    exact = np.stack(
        [exact_transport(one, layers, model.get("model").get("W"), schedule, True, "Tanh", given)
         for one, given in zip(u, condition, strict=True)]
    )  # fmt: skip
    x = [(run(m) - LN_NANOMAGGIES - model.get("shift")) / model.get("scale") for m in (fine, noise)]
    np.testing.assert_allclose(x[0], exact, atol=5e-3)
    assert np.sqrt(np.mean((x[1] - exact) ** 2)) < 0.02


def test_noise_draws_agree_with_its_statistics(noise):
    """Galaxies of the colours of the mean galaxy, and brightnesses as the model's sample has them."""
    n = 1500
    rng = np.random.default_rng(1)
    grey = np.clip(rng.normal(size=(n, 1)), -2, 2)
    magnitude = np.asarray(noise.condition_shift) + grey * np.asarray(noise.condition_scale)
    softening = np.asarray(noise.softening)
    flux = 2 * softening * np.sinh(-magnitude / 1.0857362 - np.log(softening) + LN_NANOMAGGIES)
    draws = jax.jit(jax.vmap(noise.sample))(
        jax.random.split(jax.random.PRNGKey(0), n), jnp.asarray(flux, jnp.float32)
    )
    log_error = np.log(np.asarray(draws)) - LN_NANOMAGGIES
    centre, width = np.asarray(noise.trend.centre)[:, 0], np.asarray(noise.trend.width)[:, 0]
    # The true sample has colours too, so its moments are met roughly: the sampling error is 0.03.
    assert np.abs((log_error.mean(0) - centre) / width).max() < 0.5
    assert ((log_error.std(0) / width > 0.6) & (log_error.std(0) / width < 1.3)).all()
    bright, faint = log_error[grey[:, 0] < -1].mean(0), log_error[grey[:, 0] > 1].mean(0)
    assert (bright - faint > 0.2 * width).all(), "brighter galaxies have larger errors"
    depth = 22.5 - 2.5 * np.log10(5 * np.exp(log_error.mean(0) + LN_NANOMAGGIES))
    of = dict(zip(noise.bands, depth, strict=True))
    # Five sigma in AB magnitudes: COSMOS2020 reaches 27 to 28.5 in u and g, 26 to 27 in Y to Ks and IRAC.
    assert 27 < of["u_megaprime_sagem"] < 28.5 and 27.5 < of["hsc_g"] < 29
    assert of["hsc_g"] > of["hsc_r"] > of["hsc_z"] > of["hsc_y"]
    assert of["uvista_y_cosmos"] > of["uvista_j_cosmos"] > of["uvista_h_cosmos"]
    assert all(25.5 < of[band] < 27.5 for band in noise.bands if band.startswith(("ia", "uvista", "irac")))
