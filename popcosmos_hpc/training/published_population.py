"""Population and noise models of a pop-cosmos release, read into ours.

The class layout is that of flowfusion: a `PopulationModelDiffusion` holds a score network `MLP`, a
stochastic differential equation and the shift and scale of its variables. A population model is one such
object, or a `CatalogueGenerator` around it, which brings its own zero points and line offsets too.
Networks, widths, schedules and bounds come from the file.
"""

import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.model.diffusion import Diffusion, DiffusionPrior, NoiseSchedule, ScoreNetwork
from popcosmos_hpc.parameters import Parameter, ParameterSpace, pop_cosmos
from popcosmos_hpc.training.published import sequence
from popcosmos_hpc.training.published_archive import StandIn, read_torch_archive
from popcosmos_hpc.training.published_calibration import COSMOS_BANDS, LineOffset, offsets_of

logger = logging.getLogger(__name__)

_SCHEDULES = {
    "VPSDE": ("vp", "beta_min", "beta_max"),
    "SUBVPSDE": ("sub_vp", "beta_min", "beta_max"),
    "VESDE": ("ve", "sigma_min", "sigma_max"),
}
_ACTIVATIONS = {"SiLU": "silu", "Tanh": "tanh"}
_UPSTREAM_NAMES = {"redshift": "z"}
_STEPS = (12, 24, 48, 96, 192)
_ENOUGH = 0.01  # of a standard deviation of x: rms error of the transport


class Calibration(NamedTuple):
    """What a population was fitted with.

    Attributes:
        zero_points: band -> factor on the model flux.
        offsets: of the line strengths.
    """

    zero_points: dict[str, float]
    offsets: tuple[LineOffset, ...]


class PublishedPopulation(NamedTuple):
    """A population model.

    Attributes:
        prior: over the latent parameters.
        transport_error: rms error of its transport, in standard deviations of x, per number of steps.
        calibration: what it was fitted with, or None if the file has only the population.
    """

    prior: DiffusionPrior
    transport_error: dict[int, float]
    calibration: Calibration | None


def read_population(path: Path) -> PublishedPopulation:
    """Read a population model (`catalogueModel*.pt`, or a `PopulationModelDiffusion` alone).

    Raises:
        BundleError: the file is damaged, or of another layout.
    """
    where = str(path)
    root = expect(read_torch_archive(path), where, "CatalogueGenerator", "PopulationModelDiffusion")
    generator = root if root.is_a("CatalogueGenerator") else None
    model = (
        root if generator is None else expect(root.get("population_model"), where, "PopulationModelDiffusion")
    )
    space = pop_cosmos() if generator is None else _space(generator, where)
    shift, scale = (vector(model.get(name), space.size, f"{where}, {name}") for name in ("shift", "scale"))
    diffusion, errors = with_enough_steps(read_diffusion(model, space.size, where), space.size)
    prior = DiffusionPrior(
        diffusion=diffusion, shift=jnp.asarray(shift), mixing=jnp.diag(jnp.asarray(scale)), space=space
    )
    return PublishedPopulation(
        prior, errors, None if generator is None else _try_calibration(generator, where)
    )


def read_diffusion(model: StandIn, size: int, where: str) -> Diffusion:
    """The score network and schedule of a flowfusion model.

    Args:
        model: a `PopulationModelDiffusion`, conditional or not.
        size: number of variables that it must have.
        where: its file.

    Raises:
        BundleError: it is of another layout.
    """
    network, schedule = _network(model.get("model"), size, where), _schedule(model.get("sde"), where)
    no_sigma = expect(model.get("score_model"), where, "ScoreModel").get("no_sigma")
    return Diffusion(network, schedule, "score" if no_sigma else "scaled_score", _STEPS[0])


def _network(mlp: Any, size: int, where: str) -> ScoreNetwork:
    mlp = expect(mlp, where, "MLP")
    layers = [expect(layer, where, "Linear") for layer in sequence(mlp.get("NN"), where)]
    activation = mlp.get("activation")
    name = getattr(activation, "origin", type(activation).__name__).rsplit(".", 1)[-1]
    if name not in _ACTIVATIONS:
        raise BundleError(f"an activation among {', '.join(_ACTIVATIONS)}", name, where)
    weights = tuple(jnp.asarray(np.asarray(layer.get("weight")).T, jnp.float32) for layer in layers)
    biases = tuple(jnp.asarray(np.asarray(layer.get("bias")), jnp.float32) for layer in layers)
    frequencies = jnp.asarray(np.asarray(mlp.get("W")), jnp.float32)
    n_condition = int(mlp.get("n_conditionals"))
    units = [2 * len(frequencies) + size + n_condition, *(len(bias) for bias in biases)]
    expected = list(pairwise(units))
    if [weight.shape for weight in weights] != expected or units[-1] != size:
        raise BundleError(
            f"layers of {expected}, to {size} variables", str([weight.shape for weight in weights]), where
        )
    return ScoreNetwork(weights, biases, frequencies, _ACTIVATIONS[name])


def _schedule(sde: Any, where: str) -> NoiseSchedule:
    sde = expect(sde, where, *_SCHEDULES)
    kind, low, high = _SCHEDULES[sde.origin.rsplit(".", 1)[-1]]
    if float(sde.get("T")) != 1.0:
        raise BundleError("times from 0 to 1", f"T = {float(sde.get('T'))}", where)
    return NoiseSchedule(kind, float(sde.get(low)), float(sde.get(high)), float(sde.get("epsilon")))


def with_enough_steps(
    diffusion: Diffusion, size: int, condition: Array | None = None
) -> tuple[Diffusion, dict[int, float]]:
    """The diffusion with the fewest steps that solve its flow well enough.

    The time embedding of the published networks has high frequencies, so that the number of steps which
    suffices has to be measured: against twice the largest number, on 64 base draws.

    Args:
        diffusion: see `read_diffusion`.
        size: dimensions of x.
        condition: (draw, cond) conditions of the draws, if any.

    Returns:
        The diffusion, and the rms error of its transport by number of steps.
    """
    u = jax.random.normal(jax.random.PRNGKey(0), (64 if condition is None else len(condition), size))

    def solve(n_steps: int) -> Array:
        solver = replace(diffusion, n_steps=n_steps)
        if condition is None:
            return jax.jit(jax.vmap(solver.transport))(u)
        return jax.jit(jax.vmap(solver.transport))(u, condition)

    exact = solve(2 * _STEPS[-1])
    errors: dict[int, float] = {}
    for n_steps in _STEPS:
        errors[n_steps] = round(float(jnp.sqrt(jnp.mean((solve(n_steps) - exact) ** 2))), 6)
        if errors[n_steps] <= _ENOUGH:
            break
    else:
        logger.warning("the flow is off by %.3f sd rms at %d steps", errors[_STEPS[-1]], _STEPS[-1])
    return replace(diffusion, n_steps=n_steps), errors


def _space(generator: StandIn, where: str) -> ParameterSpace:
    """The parameters, with the bounds of the file."""
    names = [_UPSTREAM_NAMES.get(name, name) for name in pop_cosmos().names]
    found = list(generator.get("param_names"))
    if found != names:
        raise BundleError(f"the parameters {', '.join(names)}", ", ".join(map(str, found)), where)
    lower, upper = (
        vector(generator.get(name), len(names), f"{where}, {name}") for name in ("lower", "upper")
    )
    bounds = zip(pop_cosmos().parameters, lower.tolist(), upper.tolist(), strict=True)
    return ParameterSpace(tuple(_bounded(*bound) for bound in bounds))


def _bounded(parameter: Parameter, lower: float, upper: float) -> Parameter:
    if parameter.transform == "identity":
        return parameter
    # The file has single precision; its usual bounds are known better than that.
    nearest = lambda value, known: known if abs(value - known) < 1e-5 * max(1.0, abs(known)) else value  # noqa: E731
    return replace(parameter, lower=nearest(lower, parameter.lower), upper=nearest(upper, parameter.upper))


def _try_calibration(generator: StandIn, where: str) -> Calibration | None:
    """The population is of use without its calibration, so a strange one is told of, not fatal."""
    try:
        return _calibration(generator, where)
    except BundleError as error:
        logger.warning("no zero points and line offsets are taken from the population model: %s", error)
        return None


def _calibration(generator: StandIn, where: str) -> Calibration:
    lines = generator.get("emission_line_flux_emulator")
    bands = tuple(lines.get("filternames")) if isinstance(lines, StandIn) else tuple(COSMOS_BANDS)
    zero_points = vector(generator.get("zero_points"), len(bands), f"{where}, zero_points")
    offsets = np.asarray(generator.get("emline_offsets"), np.float64).ravel()
    waves = np.asarray(expect(lines, where, "EmLineEmulator").get("line_lambdas_selected"), np.float64)
    if offsets.shape != waves.shape:
        raise BundleError(f"{len(waves)} line offsets", str(offsets.shape), where)
    rounded = {band: round(float(value), 7) for band, value in zip(bands, zero_points, strict=True)}
    return Calibration(rounded, offsets_of(waves, offsets))


def vector(value: Any, size: int, where: str) -> np.ndarray:
    """An array (size,) of float32; a single number stands for all.

    Raises:
        BundleError: it has another size, or holds what is not a number.
    """
    array = np.asarray(value, np.float32)
    if array.size not in (1, size) or np.isnan(array).any():
        raise BundleError(f"{size} numbers", f"an array {array.shape}", where)
    return np.broadcast_to(array.ravel(), (size,)).copy()


def expect(value: Any, where: str, *names: str) -> StandIn:
    """The object itself if its class has one of the names.

    Raises:
        BundleError: it has another.
    """
    if not isinstance(value, StandIn) or not value.is_a(*names):
        found = value.origin if isinstance(value, StandIn) else type(value).__name__
        raise BundleError(f"a {' or '.join(names)}", found, where, "The file is of another layout.")
    return value
