"""Population models in flowfusion's layout: schedules, networks and widths come from the file."""

import dataclasses
import logging
import pickle
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.parameters import POP_COSMOS
from popcosmos_hpc.training.published_calibration import COSMOS_BANDS, LINE_OFFSETS
from popcosmos_hpc.training.published_population import read_population
from tests.torch_archive import Call, Module, Named, activation, linear, write_archive, write_raw

DIFFUSION = "flowfusion.diffusion"
CONSTANTS = {
    "VPSDE": {"beta_min": 0.1, "beta_max": np.array(18.0, np.float32), "T": 1.0},
    "SUBVPSDE": {"beta_min": 0.2, "beta_max": 15.0, "T": 1.0},
    "VESDE": {name: np.array(value, np.float32) for name, value in
              (("sigma_min", 0.02), ("sigma_max", 8.0), ("T", 1.0))},
}  # fmt: skip
EPSILON = {"VPSDE": 1e-3, "SUBVPSDE": 1e-4, "VESDE": 1e-5}
SHIFT = np.linspace(-1.0, 20.0, 16).astype(np.float32)
SCALE = np.linspace(0.5, 3.0, 16).astype(np.float32)


def make_layers(rng, size, n_condition, units, n_frequencies, slope=1.0):
    """Random layers near a small multiple of the identity, ending in one that undoes it with a minus.

    So the output is roughly -x, the score of normal data, and the flow stays in bounds; `slope` is that of
    the activation at zero.
    """
    sizes = (2 * n_frequencies + size + n_condition, *units, size)
    layers, last = [], len(units)
    for index, (n_in, n_out) in enumerate(pairwise(sizes)):
        first = 2 * n_frequencies if index == 0 else 0
        weight, bias = 0.3 * rng.normal(size=(n_out, n_in)) / np.sqrt(n_in), 0.01 * rng.normal(size=n_out)
        weight[:size, first : first + size] += np.eye(size)
        gain = {0: 0.1, last: -10.0 / slope**last}.get(index, 1.0)
        layers.append(((gain * weight).astype(np.float32), bias.astype(np.float32)))
    return layers


def make_mlp(layers, frequencies, size, n_condition, kind="Tanh"):
    modules = {str(k): linear(*layer) for k, layer in enumerate(layers)}
    listed = Module("torch.nn.modules.container.ModuleList", modules=modules)
    return Module(
        f"{DIFFUSION}.MLP", {"W": frequencies}, {"pi": np.array(np.pi, np.float32)},
        {"NN": listed, "activation": activation(kind)},
        n_dimensions=size, n_conditionals=n_condition, n_layers=len(layers),
    )  # fmt: skip


def make_model(mlp, sde, no_sigma, shift=SHIFT, scale=SCALE, kind="PopulationModelDiffusion", **buffers):
    constants = {name: value for name, value in CONSTANTS[sde].items() if isinstance(value, np.ndarray)}
    others = {name: value for name, value in CONSTANTS[sde].items() if name not in constants}
    epsilon = np.array(EPSILON[sde], np.float32)
    process = Module(f"{DIFFUSION}.{sde}", buffers={"epsilon": epsilon, **constants}, **others)
    score = Module(
        f"{DIFFUSION}.ScoreModel", modules={"model": mlp, "sde": process},
        conditional=None, no_sigma=no_sigma, prob=False, hutch=False,
    )  # fmt: skip
    return Module(
        f"{DIFFUSION}.{kind}", buffers={"shift": shift, "scale": scale, **buffers},
        modules={"model": mlp, "sde": process, "score_model": score},
        options={"min_step": 1e-6}, method="dopri5",
    )  # fmt: skip


def make_generator(population, **changes):
    """A `CatalogueGenerator`, with the other objects that it holds."""
    lower = np.array([7.0 if p.name == "N" else p.lower for p in POP_COSMOS.parameters], np.float32)
    upper = np.array([13.0 if p.name == "N" else p.upper for p in POP_COSMOS.parameters], np.float32)
    upper[-1] = 4.5
    names = ["z" if name == "redshift" else name for name in POP_COSMOS.names]
    waves = np.array([1215.67, 4070.0, *(line.wave for line in LINE_OFFSETS)], np.float32)
    network = Module("speculator.speculator.Speculator", device=Call(Named("torch", "device"), ("cuda",)))
    lines = Module(
        "pop_cosmos.emlines.EmLineEmulator", modules={"speculator_emlines": network},
        filternames=list(COSMOS_BANDS), line_lambdas_selected=waves,
    )  # fmt: skip
    offsets = np.array([2e-6, -5e-6, *(line.offset * 1.1 for line in LINE_OFFSETS)], np.float32)
    zero_points = np.linspace(0.9, 1.1, len(COSMOS_BANDS)).astype(np.float32)
    facts = {
        "param_names": names, "n_params": 16, "lower": lower, "upper": upper, "zero_points": zero_points,
        "emline_offsets": offsets, "ln_emline_scatters": np.full(len(waves), -29.0, np.float32),
        "noise_base": Module("torch.distributions.studentT.StudentT", plain=True, df=np.array(2.0)),
        **changes,
    }  # fmt: skip
    modules = {"population_model": population, "emission_line_flux_emulator": lines}
    return Module("pop_cosmos.catalogue.CatalogueGenerator", modules=modules, **facts)


def exact_transport(u, layers, frequencies, sde, no_sigma, kind):
    """Phi by an adaptive solver, from the equations of Song et al. 2021 written out anew."""
    low, high = (float(CONSTANTS[sde][name]) for name in list(CONSTANTS[sde])[:2])
    act = np.tanh if kind == "Tanh" else lambda a: a / (1 + np.exp(-a))

    def network(t, x):
        phase = 2 * np.pi * frequencies.astype(np.float64) * t
        h = np.concatenate([np.sin(phase), np.cos(phase), x])
        for weight, bias in layers[:-1]:
            h = act(weight.astype(np.float64) @ h + bias)
        return layers[-1][0].astype(np.float64) @ h + layers[-1][1]

    def field(t, x):
        beta = low + (high - low) * t
        integral = low * t + 0.5 * (high - low) * t**2
        if sde == "VESDE":
            sigma = low * (high / low) ** t
            f, g2 = 0.0, sigma**2 * 2 * np.log(high / low)
        elif sde == "VPSDE":
            sigma = np.sqrt(1 - np.exp(-integral))
            f, g2 = -0.5 * beta * x, beta
        else:
            sigma = 1 - np.exp(-integral)
            f, g2 = -0.5 * beta * x, beta * (1 - np.exp(-2 * integral))
        score = network(t, x) if no_sigma else network(t, x) / sigma
        return f - 0.5 * g2 * score

    start = u * (high if sde == "VESDE" else 1.0)
    span = (1.0, float(np.float32(EPSILON[sde])))
    solved = solve_ivp(field, span, start, rtol=1e-7, atol=1e-8, method="DOP853")
    return SHIFT + SCALE * solved.y[:, -1]


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
    expected = np.stack([exact_transport(one, layers, frequencies, sde, no_sigma, kind) for one in u])
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
