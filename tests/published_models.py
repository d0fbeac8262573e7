"""Models in the layout of a pop-cosmos release, at any size, and the equations that they stand for."""

import pickle
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.integrate import solve_ivp

from popcosmos_hpc.parameters import POP_COSMOS
from popcosmos_hpc.training.published_calibration import COSMOS_BANDS, LINE_OFFSETS
from tests.torch_archive import Call, Module, Named, activation, linear, write_archive

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


def constants_of(sde):
    """The two constants of a schedule and its shortest time, as the file holds them."""
    low, high = (float(CONSTANTS[sde][name]) for name in list(CONSTANTS[sde])[:2])
    return sde, low, high, float(np.float32(EPSILON[sde]))


def exact_transport(u, layers, frequencies, schedule, no_sigma, kind="Tanh", condition=()):
    """Standardised x by an adaptive solver, from the equations of Song et al. 2021 written out anew.

    Args:
        u: (dim,) base draw.
        layers: (weight (out, in), bias) each.
        frequencies: of the time embedding.
        schedule: see `constants_of`.
        no_sigma: whether the network is the score itself.
        kind: activation.
        condition: (cond,) standardised.
    """
    sde, low, high, epsilon = schedule
    act = np.tanh if kind == "Tanh" else lambda a: a / (1 + np.exp(-a))
    layers = [(np.asarray(weight, np.float64), np.asarray(bias, np.float64)) for weight, bias in layers]

    def network(t, x):
        phase = 2 * np.pi * np.asarray(frequencies, np.float64) * t
        h = np.concatenate([np.sin(phase), np.cos(phase), x, condition])
        for weight, bias in layers[:-1]:
            h = act(weight @ h + bias)
        return layers[-1][0] @ h + layers[-1][1]

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
        return f - 0.5 * g2 * (network(t, x) if no_sigma else network(t, x) / sigma)

    start = u * (high if sde == "VESDE" else 1.0)
    return solve_ivp(field, (1.0, epsilon), start, rtol=1e-7, atol=1e-8, method="DOP853").y[:, -1]


def make_noise(rng, n_bands, kind="NoiseModel"):
    """A noise model; the condition enters weakly."""
    layers = make_layers(rng, n_bands, n_bands, (n_bands + 6, n_bands + 2), 2)
    frequencies = rng.normal(size=2).astype(np.float32)
    real = lambda low, high: np.linspace(low, high, n_bands).astype(np.float32)  # noqa: E731
    model = make_model(
        make_mlp(layers, frequencies, n_bands, n_bands), "VPSDE", True, real(-27, -25), real(0.3, 0.5),
        "PopulationModelDiffusionConditional",
        conditional_shift=real(25, 24), conditional_scale=real(1.1, 1.6),
    )  # fmt: skip
    number = lambda value: np.array(value, np.float32)  # noqa: E731
    buffers = {
        "magnitude_min": np.full(n_bands, -np.inf, np.float32), "magnitude_max": real(31, 32),
        "log_error_min": number(-28.0), "log_error_max": number(-19.5), "error_floor": number(0.0),
        "zp_star": number(1.0), "f_b": real(0.001, 0.004),
    }  # fmt: skip
    made = Module(f"pop_cosmos.catalogue.{kind}", buffers=buffers, modules={"model": model}, n_bands=n_bands)
    return made, layers, frequencies


def moments():
    """Mean and standard deviation of inputs drawn uniformly; the range of redshifts is read from them."""
    box = [(18.0, 24.0) if p.name == "N" else (p.lower, p.upper) for p in POP_COSMOS.parameters]
    lower, upper = np.array(box).T
    lower[8], upper[8] = np.sqrt(lower[8]), np.sqrt(upper[8])
    return 0.5 * (lower + upper), (upper - lower) / np.sqrt(12.0)


def make_photulator(rng, band, units=(8, 6, 8)):
    """One band's emulator: every layer activated, the last one too."""
    inputs = {"dust2": "sqrt_dust2", "redshift": "z"}
    names = [inputs.get(name, name) for name in POP_COSMOS.names if name != "N"]
    array = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    listed = lambda values: Module(  # noqa: E731
        "torch.nn.modules.container.ParameterList", {str(k): value for k, value in enumerate(values)}
    )
    pairs = list(pairwise((15, *units, 1)))
    modules = {
        "W": listed([array(*pair) / np.float32(np.sqrt(pair[0])) for pair in pairs]),
        **{name: listed([array(n_out) for _, n_out in pairs]) for name in ("b", "alphas", "betas")},
    }
    shift, scale = (values[1:].astype(np.float32) for values in moments())
    buffers = {
        "parameters_shift": shift, "parameters_scale": scale, "magnitudes_shift": 4 + array(1)[0],
        "magnitudes_scale": 0.5 + rng.random(), "f_b": np.array(0.003, np.float32),
    }  # fmt: skip
    buffers = {name: np.asarray(value, np.float32) for name, value in buffers.items()}
    facts = {"filters": [band], "parameter_names": names, "n_layers": len(pairs)}
    return Module("speculator.speculator.Photulator", buffers=buffers, modules=modules, **facts)


def write_release(folder: Path, bands=("hsc_i", "u_megaprime_sagem", "a_b.new"), seed=0) -> Path:
    """A small release: `trained_models` with emulators of bands, lines and surviving mass, and noise."""
    rng, root = np.random.default_rng(seed), Path(folder) / "trained_models"
    for band in bands:
        path = root / "photulator_models" / f"model_3x8_small20_{band}_cpu.pt"
        write_archive(path, make_photulator(rng, band))
        for part in (root / "emline_bandpass_models", root / "emline_speculator_models"):
            part.mkdir(parents=True, exist_ok=True)
        mixture = [[5e3, 1e4, 3e3], [300, 200, 500], [8, 5, 11], rng.uniform(4000, 9000, 3)]
        np.save(root / "emline_bandpass_models" / f"line_gengmmcoeffs_{band}.npy", np.concatenate(mixture))
    _write_lines(rng, root / "emline_speculator_models")
    modules = {}
    for k, (n_in, n_out) in enumerate(pairwise((16, 5, 7, 1))):
        modules[str(2 * k)] = linear(rng.normal(size=(n_out, n_in)) / 4, np.full(n_out, 0.5))
        modules[str(2 * k + 1)] = activation("Tanh")
    sequential = Module("torch.nn.modules.container.Sequential", modules=modules)
    write_archive(root / "stellar_mass_emulator.pt", sequential)
    both = (rng.normal(size=16).astype(np.float32), np.exp(rng.normal(size=16)).astype(np.float32))
    (root / "stellar_mass_parameter_shift-scale.pkl").write_bytes(pickle.dumps(both, 4))
    write_archive(root / "noiseModel.pt", make_noise(rng, len(bands))[0])
    return root


def _write_lines(rng, folder: Path) -> None:
    pairs, n_lines = list(pairwise((16, 9, 7, 4))), 30
    arrays = [rng.normal(size=pair) / np.sqrt(pair[0]) for pair in pairs]
    arrays += [rng.normal(size=n_out) for _, n_out in pairs]
    arrays += [rng.normal(size=n_out) for _ in range(2) for _, n_out in pairs[:-1]]
    state = OrderedDict((f"params.{k}", array.astype(np.float32)) for k, array in enumerate(arrays))
    write_archive(folder / "speculator-emlinesabsmags", state)
    waves = np.concatenate([rng.uniform(1000, 3000, 13), [line.wave + 0.3 for line in LINE_OFFSETS]])
    np.save(folder / "elams.npy", np.sort(waves))
    shift, scale = moments()
    np.savez(
        folder / "PCABasis.npz",
        pca_transform_matrix=rng.normal(size=(4, n_lines)), pca_shift=rng.normal(size=4),
        pca_scale=np.exp(0.5 * rng.normal(size=4)), parameters_shift=shift, parameters_scale=scale,
        log_spectrum_shift=5 + rng.normal(size=n_lines), log_spectrum_scale=np.full(n_lines, 0.2),
    )  # fmt: skip
