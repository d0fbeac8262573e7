r"""Score matching: parameter draws to a diffusion prior.

The network learns the velocity of the diffusion from noised draws (Vincent 2011; Song et al. 2021,
arXiv:2011.13456; Salimans & Ho 2022, arXiv:2202.00512), with times t uniform on the schedule's clock s,

.. math:: \min E\,| v(x_t, t) - (\alpha\epsilon - \sigma x_0) |^2 , \qquad s \sim U(s_{min}, s_{max}) .

Each parameter's draws are taken to normal scores first, and these are whitened, so that the network starts
from the population of the same margins and rank correlations and learns only what departs from it; and its
weights are averaged. Uniform times, unwhitened draws and last weights gave populations several times too
wide.
"""

import hashlib
import json
import logging
import platform
from pathlib import Path
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import yaml
from jax import Array
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import popcosmos_hpc
from popcosmos_hpc.errors import ConfigurationError, TrainingError
from popcosmos_hpc.model.bundle import load_bundle, save_bundle
from popcosmos_hpc.model.diffusion import Diffusion, DiffusionPrior, NoiseSchedule, initial_score_network
from popcosmos_hpc.model.diffusion_bundle import prior_to_bundle
from popcosmos_hpc.model.marginals import Marginals, fit_marginals
from popcosmos_hpc.model.transforms import to_latent
from popcosmos_hpc.parameters import ParameterSpace
from popcosmos_hpc.training.fit import Schedule, train
from popcosmos_hpc.training.two_sample import compare_draws

logger = logging.getLogger(__name__)

_EXAMPLES = 500_000  # per round
_HELD_OUT = 20_000


class PriorRecipe(BaseModel):
    """How a diffusion prior is trained.

    Attributes:
        name: of the bundle.
        description: for people.
        width: units per hidden layer.
        depth: hidden layers.
        n_rounds: rounds of half a million noised draws.
        batch_size: draws per gradient step.
        learning_rate: peak of the cosine.
        average: decay per step of the averaged weights.
        n_steps: solver steps of the prior's transport.
        margins: whether the network learns normal scores of each parameter, rather than phi itself.
        clock: of the solver and of the training's times; see `NoiseSchedule`.
        seed: of weights, noise and the held-out draws.
        citations: works that the draws are based on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    width: int = Field(256, ge=1)
    depth: int = Field(4, ge=1)
    n_rounds: int = Field(60, ge=1)
    batch_size: int = Field(1024, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    average: float = Field(0.999, ge=0, lt=1)
    n_steps: int = Field(12, ge=3)
    margins: bool = True
    clock: Literal["time", "angle"] = "angle"
    seed: int = 1
    citations: tuple[str, ...] = ()


def load_prior_recipe(path: Path) -> PriorRecipe:
    """Read a recipe.

    Raises:
        ConfigurationError: the file is missing or says something unknown.
    """
    if not path.is_file():
        raise ConfigurationError("a training configuration", f"no file {path}", "train prior")
    try:
        return PriorRecipe(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, TypeError, yaml.YAMLError) as error:
        raise ConfigurationError("a valid training configuration", str(error), str(path)) from error


class Whitening(NamedTuple):
    """Phi = shift + mixing x: (param,) and lower-triangular (param, param)."""

    shift: np.ndarray
    mixing: np.ndarray


def train_prior(
    theta: np.ndarray, space: ParameterSpace, recipe: PriorRecipe, checkpoint: Path | None = None
) -> DiffusionPrior:
    """Train a diffusion prior on draws.

    Args:
        theta: (draw, param) physical parameters.
        space: the parameters.
        recipe: network and schedule.
        checkpoint: file for the state of training; a killed training goes on from it.

    Raises:
        TrainingError: draws that are not finite or outside their bounds; too few of them; or a loss that
            is not finite.
    """
    phi = _latent(theta, space)
    margins = fit_marginals(phi) if recipe.margins else None
    y = phi if margins is None else _scores(margins, phi)
    whitening = whiten(y)
    x = np.linalg.solve(whitening.mixing, (y - whitening.shift).T).T.astype(np.float32)
    schedule = NoiseSchedule("vp", clock=recipe.clock)
    network = initial_score_network(
        jax.random.PRNGKey(recipe.seed), space.size, width=recipe.width, depth=recipe.depth
    )
    diffusion = Diffusion(network, schedule, "velocity", recipe.n_steps)
    pace = Schedule(
        recipe.n_rounds, recipe.batch_size, recipe.learning_rate, recipe.seed, recipe.average, clip=1.0
    )
    trained = train(
        diffusion, velocity_loss, noised_draws(x, schedule, recipe.seed), pace, checkpoint, recipe.name
    )
    shift, mixing = (jnp.asarray(part, jnp.float32) for part in whitening)
    return DiffusionPrior(diffusion=trained, shift=shift, mixing=mixing, space=space, margins=margins)


def velocity_loss(diffusion: Diffusion, inputs: Array, target: Array) -> Array:
    """Mean squared error of the velocity for one noised draw: inputs are (t, x_t, condition)."""
    size = target.shape[0]
    condition = inputs[1 + size :] if inputs.shape[0] > 1 + size else None
    return jnp.mean((diffusion.network(inputs[0], inputs[1 : 1 + size], condition) - target) ** 2)


def noised_draws(x: np.ndarray, schedule: NoiseSchedule, seed: int, condition: np.ndarray | None = None):
    """Source of training examples for `training.fit.train`.

    Args:
        x: (draw, dim) standardised data.
        schedule: of the noise.
        seed: of times, noise and order.
        condition: (draw, cond) standardised conditions, or None.

    Returns:
        Function: round -> inputs (example, 1 + dim + cond) = (t, x_t, condition), velocities (example, dim).
    """

    def examples(index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([seed, index])
        rows = rng.integers(0, len(x), min(len(x), _EXAMPLES))
        first, last = schedule.s_min, schedule.s_max
        clock = first + (last - first) * rng.random(len(rows), dtype=np.float32)
        time = np.asarray(jax.vmap(schedule.time)(jnp.asarray(clock, jnp.float32)))
        alpha, sigma = (np.asarray(part)[:, None] for part in jax.vmap(schedule.scales)(jnp.asarray(time)))
        noise = rng.standard_normal((len(rows), x.shape[1]), dtype=np.float32)
        parts = [time[:, None], alpha * x[rows] + sigma * noise]
        parts += [] if condition is None else [condition[rows]]
        return np.concatenate(parts, axis=1, dtype=np.float32), alpha * noise - sigma * x[rows]

    return examples


def whiten(phi: np.ndarray) -> Whitening:
    """Mean and Cholesky factor of the covariance of draws (draw, param)."""
    covariance = np.atleast_2d(np.cov(phi.astype(np.float64), rowvar=False))
    return Whitening(phi.mean(axis=0), np.linalg.cholesky(covariance + 1e-10 * np.eye(len(covariance))))


def _scores(margins: Marginals, phi: np.ndarray) -> np.ndarray:
    """Normal scores (draw, param) of draws of phi."""
    forward = jax.jit(jax.vmap(lambda row: margins.forward(row)[0]))
    return np.asarray(forward(jnp.asarray(phi, jnp.float32)), np.float64)


def _latent(theta: np.ndarray, space: ParameterSpace) -> np.ndarray:
    """Checked draws in phi."""
    if theta.ndim != 2 or theta.shape[1] != space.size or len(theta) < 20 * space.size:
        raise TrainingError(
            f"at least {20 * space.size} draws of {space.size} parameters", f"shape {theta.shape}",
            "training draws",
        )  # fmt: skip
    lower = np.array([parameter.lower for parameter in space.parameters])
    upper = np.array([parameter.upper for parameter in space.parameters])
    bad = ~np.isfinite(theta) | (theta < lower) | (theta > upper)
    if bad.any():
        worst = ", ".join(
            f"{name} in {count} rows"
            for name, count in zip(space.names, bad.sum(axis=0), strict=True)
            if count
        )
        raise TrainingError(
            "finite draws inside the parameters' bounds", worst, "training draws",
            "Remove or correct these rows.",
        )  # fmt: skip
    return np.asarray(to_latent(space, jnp.asarray(theta, jnp.float32)), np.float64)


def draw(prior: DiffusionPrior, count: int, seed: int) -> np.ndarray:
    """Draws of phi (count, param)."""
    one = eqx.filter_jit(jax.vmap(lambda key: prior.transport(prior.sample_base(key))))
    keys = jax.random.split(jax.random.PRNGKey(seed), count)
    return np.concatenate([np.asarray(one(keys[i : i + 10_000])) for i in range(0, count, 10_000)])


def read_draws(path: Path, space: ParameterSpace) -> np.ndarray:
    """Parameter draws (draw, param) of a Parquet table with a column per parameter.

    Raises:
        TrainingError: a column is missing.
    """
    known = set(pq.read_schema(path).names)
    if missing := [name for name in space.names if name not in known]:
        raise TrainingError(
            f"a column for each of {', '.join(space.names)}", f"none for {', '.join(missing)}", str(path)
        )
    table = pq.read_table(path, columns=list(space.names))
    return np.stack([table[name].to_numpy() for name in space.names], axis=1)


def train_prior_bundle(
    theta: np.ndarray,
    space: ParameterSpace,
    recipe: PriorRecipe,
    out: Path,
    checkpoint_dir: Path | None = None,
) -> Path:
    """Train on draws, measure against held-out ones, and write a population bundle.

    Returns:
        The folder of the bundle.

    Raises:
        TrainingError: as `train_prior`.
    """
    order = np.random.default_rng([recipe.seed, 0]).permutation(len(theta))
    n_test = min(_HELD_OUT, len(theta) // 5)
    test, rest = theta[order[:n_test]], theta[order[n_test:]]
    digest = hashlib.sha256(np.ascontiguousarray(theta).tobytes()).hexdigest()
    settings = json.dumps([recipe.model_dump(mode="json"), digest], sort_keys=True)
    name = f"{recipe.name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.eqx"
    prior = train_prior(rest, space, recipe, checkpoint_dir / name if checkpoint_dir else None)
    drawn = draw(prior, n_test, recipe.seed + 1)
    accuracy = compare_draws(drawn, _latent(test, space), space.names)
    logger.info("against %d held-out draws: %s", n_test, accuracy)
    facts, arrays = prior_to_bundle(prior)
    manifest = {
        "name": recipe.name,
        "description": recipe.description,
        **facts,
        "accuracy": accuracy,
        "training_draws": {"count": len(rest), "sha256": digest},
        "recipe": recipe.model_dump(mode="json"),
        "citations": list(recipe.citations),
        "software": {
            "popcosmos_hpc": popcosmos_hpc.__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
    }
    save_bundle(out, manifest, arrays)
    load_bundle(out, "population")
    return out
