"""Population models in flowfusion's layout: schedules, networks and widths come from the file."""

import dataclasses
import logging
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.model.noise import LN_NANOMAGGIES, asinh_magnitude
from popcosmos_hpc.parameters import POP_COSMOS
from popcosmos_hpc.training.published_calibration import COSMOS_BANDS, LINE_OFFSETS
from popcosmos_hpc.training.published_noise import read_noise
from popcosmos_hpc.training.published_population import read_population
from tests.published_models import (
    DIFFUSION,
    SCALE,
    SHIFT,
    constants_of,
    exact_transport,
    make_generator,
    make_layers,
    make_mlp,
    make_model,
    make_noise,
)
from tests.torch_archive import Module, write_archive, write_raw

CASES = [
    ("VPSDE", True, "Tanh", (32, 32, 32), 4),
    ("VPSDE", False, "SiLU", (24,), 2),
    ("VESDE", False, "Tanh", (20, 40), 8),
    ("SUBVPSDE", False, "Tanh", (32, 16, 32, 16), 3),
]


@pytest.mark.parametrize(("sde", "no_sigma", "kind", "units", "n_frequencies"), CASES)
def test_draws_are_those_of_the_published_equations(tmp_path, sde, no_sigma, kind, units, n_frequencies):
    rng = np.random.default_rng(7)
    frequencies = rng.normal(size=n_frequencies).astype(np.float32)
    layers = make_layers(rng, 16, 0, units, n_frequencies, 1.0 if kind == "Tanh" else 0.5)
    model = make_model(make_mlp(layers, frequencies, 16, 0, kind), sde, no_sigma)
    published = read_population(write_archive(tmp_path / "catalogueModel.pt", model))
    prior = published.prior
    assert published.calibration is None and prior.space == POP_COSMOS
    assert prior.diffusion.output == ("score" if no_sigma else "scaled_score")
    assert [w.shape[1] for w in prior.diffusion.network.weights] == [*units, 16]
    fine = dataclasses.replace(prior, diffusion=dataclasses.replace(prior.diffusion, n_steps=384))
    u = rng.normal(size=(3, 16))
    got, chosen = (
        np.asarray(jax.jit(jax.vmap(p.transport))(jnp.asarray(u, jnp.float32))) for p in (fine, prior)
    )
    exact = [exact_transport(one, layers, frequencies, constants_of(sde), no_sigma, kind) for one in u]
    expected = SHIFT + SCALE * np.stack(exact)
    np.testing.assert_allclose((got - expected) / SCALE, 0.0, atol=2e-4)
    # The steps chosen promise 0.01 rms on other draws; the rms of 48 numbers is known to 10 %, and a
    # draw far out can be several times worse than most.
    assert np.sqrt(np.mean(((chosen - expected) / SCALE) ** 2)) < 0.03
    errors = list(published.transport_error.values())
    assert errors[-1] <= 0.01 < min(errors[:-1]) and errors == sorted(errors, reverse=True)
    assert list(published.transport_error)[-1] == prior.diffusion.n_steps


@pytest.fixture
def population():
    rng = np.random.default_rng(1)
    frequencies = rng.normal(size=2).astype(np.float32)
    return make_model(make_mlp(make_layers(rng, 16, 0, (16,), 2), frequencies, 16, 0), "VPSDE", True)


def test_a_generator_brings_its_bounds_and_calibration(tmp_path, population):
    published = read_population(write_archive(tmp_path / "a.pt", make_generator(population)))
    space = published.prior.space
    assert space.names == POP_COSMOS.names
    assert space.parameters[-1].upper == 4.5
    assert space.parameters[:-1] == POP_COSMOS.parameters[:-1]
    calibration = published.calibration
    assert list(calibration.zero_points) == list(COSMOS_BANDS)
    np.testing.assert_allclose(list(calibration.zero_points.values()), np.linspace(0.9, 1.1, 26), atol=1e-6)
    assert [line.name for line in calibration.offsets] == [line.name for line in LINE_OFFSETS]
    for line, usual in zip(calibration.offsets, LINE_OFFSETS, strict=True):
        assert line.offset == pytest.approx(1.1 * usual.offset, rel=1e-5)
        assert line.wave == pytest.approx(usual.wave, rel=1e-6)


def test_a_strange_calibration_is_told_of(tmp_path, population, caplog):
    generator = make_generator(population, emline_offsets=np.zeros(3, np.float32))
    with caplog.at_level(logging.WARNING):
        published = read_population(write_archive(tmp_path / "a.pt", generator))
    assert published.calibration is None and "19 line offsets" in caplog.text


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"param_names": ["N", "z"]}, "expected the parameters N, log10Z"),
        ({"lower": np.zeros(3, np.float32)}, "lower: expected 16 numbers"),
    ],
)
def test_generators_of_other_parameters_are_refused(tmp_path, population, change, complaint):
    with pytest.raises(BundleError, match=complaint):
        read_population(write_archive(tmp_path / "a.pt", make_generator(population, **change)))


def test_other_layouts_are_refused(tmp_path, population):
    rng = np.random.default_rng(1)
    frequencies = rng.normal(size=2).astype(np.float32)
    layers = make_layers(rng, 16, 0, (16, 16), 2)
    mlp = make_mlp(layers, frequencies, 16, 0)
    small = make_mlp(make_layers(rng, 5, 0, (16,), 2), frequencies, 5, 0)
    refused = [
        (make_model(make_mlp(layers[:1] + layers[2:], frequencies, 15, 1), "VPSDE", True), "layers of"),
        (make_model(make_mlp(layers, frequencies, 16, 0, "ReLU"), "VPSDE", True), "an activation among"),
        (make_model(mlp, "VPSDE", True, shift=SHIFT[:5]), "shift: expected 16 numbers"),
        (make_model(mlp, "VPSDE", True, scale=np.full(16, np.nan, np.float32)), "scale: expected 16 numbers"),
        (make_model(small, "VPSDE", True), "layers of"),
        (make_model(Module(f"{DIFFUSION}.MLPBase"), "VPSDE", True), "expected a MLP; got flowfusion"),
        (Module("pop_cosmos.catalogue.NoiseModel"), "CatalogueGenerator or PopulationModelDiffusion"),
        ({"params.0": np.ones(3)}, "got dict"),
    ]  # fmt: skip
    slow = make_model(mlp, "VPSDE", True)
    slow.state["_modules"]["sde"].state["T"] = 2.0
    lost = make_model(mlp, "VPSDE", True)
    del lost.state["_modules"]["score_model"].state["no_sigma"]
    for model, complaint in [*refused, (slow, "times from 0 to 1"), (lost, "an attribute no_sigma")]:
        with pytest.raises(BundleError, match=complaint):
            read_population(write_archive(tmp_path / "a.pt", model))


def test_a_hostile_population_is_refused(tmp_path):
    import os

    trace = tmp_path / "trace"

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {trace}",))

    archive = write_raw(tmp_path / "catalogueModelT25.pt", pickle.dumps(Evil()))
    with pytest.raises(BundleError, match="refuses posix"):
        read_population(archive)
    assert not trace.exists()


def test_noise_is_that_of_the_published_equations(tmp_path):
    rng, bands = np.random.default_rng(2), ("a", "b", "c")
    noise, layers, frequencies = make_noise(rng, len(bands))
    published = read_noise(write_archive(tmp_path / "noiseModel.pt", noise), bands)
    model = published.model
    assert published.error_floor == 0.0 and model.bands == bands and model.clip == (-28.0, -19.5)
    model = dataclasses.replace(model, diffusion=dataclasses.replace(model.diffusion, n_steps=384))
    flux, u = jnp.asarray([0.05, 2.0, -0.01]), rng.normal(size=3)
    errors = jax.jit(lambda base, flux: model.transport(base, flux))(jnp.asarray(u, jnp.float32), flux)
    got = np.log(np.asarray(errors)) - LN_NANOMAGGIES
    magnitude = np.asarray(asinh_magnitude(flux, np.linspace(0.001, 0.004, 3, dtype=np.float32)))
    np.testing.assert_allclose(magnitude[1], 22.5 - 2.5 * np.log10(2.0), atol=1e-4)
    condition = (np.minimum(magnitude, np.linspace(31, 32, 3)) - np.linspace(25, 24, 3)) / np.linspace(
        1.1, 1.6, 3
    )
    x = exact_transport(u, layers, frequencies, constants_of("VPSDE"), True, "Tanh", condition)
    np.testing.assert_allclose(got, np.linspace(-27, -25, 3) + np.linspace(0.3, 0.5, 3) * x, atol=5e-4)


def test_other_noise_models_are_refused(tmp_path):
    rng = np.random.default_rng(2)
    noise, *_ = make_noise(rng, 3)
    with pytest.raises(BundleError, match="a noise model of 2 bands; got one of 3"):
        read_noise(write_archive(tmp_path / "a.pt", noise), ("a", "b"))
    with pytest.raises(BundleError, match=r"got pop_cosmos\.catalogue\.NoiseModelMDN"):
        read_noise(write_archive(tmp_path / "a.pt", Module("pop_cosmos.catalogue.NoiseModelMDN")), ("a",))
