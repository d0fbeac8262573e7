r"""The density of one parameter given the others, learned from a teacher's draws and measured against it.

Trained by maximum likelihood, which is the divergence of the student from its teacher but for a constant. The
teacher's own conditional density, to which it is held, is its exact density along the line of that
parameter, normalised by quadrature,

.. math:: p(N | \theta) = \frac{p(N, \theta)}{\int p(N', \theta)\, dN'} .
"""

import math
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Scalar

from popcosmos_hpc.errors import TrainingError
from popcosmos_hpc.model.amplitude import AmplitudeConditional, MixtureNetwork, initial_mixture_network
from popcosmos_hpc.model.diffusion import DiffusionPrior
from popcosmos_hpc.model.marginals import fit_marginals
from popcosmos_hpc.model.student_uses import Measure
from popcosmos_hpc.model.transforms import to_physical
from popcosmos_hpc.parameters import ParameterSpace
from popcosmos_hpc.training.fit import train
from popcosmos_hpc.training.prior import whiten
from popcosmos_hpc.training.student_accuracy import draw_pairs, log_density, mean
from popcosmos_hpc.training.student_draws import (
    INITIAL,
    ROUNDS,
    WHITENED_BY,
    WHITENING,
    stream_key,
    teacher_draws,
)
from popcosmos_hpc.training.student_recipe import AmplitudeRecipe

_COARSE, _FINE = 48, 128  # points along a line, to find where the density is and to integrate it
_NEGLIGIBLE = 14.0  # ln of the density below its peak at which the line ends


def train_amplitude(
    teacher: DiffusionPrior, recipe: AmplitudeRecipe, checkpoint: Path | None = None
) -> AmplitudeConditional:
    """Train the conditional density of a parameter on draws of a population.

    Args:
        teacher: any diffusion prior of two parameters or more.
        recipe: size and pace.
        checkpoint: file for the state of training; a killed training goes on from it.

    Returns:
        The student, not measured yet.

    Raises:
        TrainingError: a draw of the teacher or the loss is not finite.
        ConfigurationError: the parameter is unknown or bounded.
    """

    def theta_of(stream: int, index: int, count: int) -> np.ndarray:
        return physical(teacher.space, teacher_draws(teacher, recipe, stream, index, count)[1])

    student = untrained(theta_of(WHITENING, 0, WHITENED_BY), teacher.space, recipe)

    def examples(index: int) -> tuple[np.ndarray, np.ndarray]:
        inputs, targets = standardised(student, theta_of(ROUNDS, index, recipe.n_draws))
        return np.tile(inputs, (recipe.n_passes, 1)), np.tile(targets, (recipe.n_passes, 1))

    network = train(student.network, negative_log_prob, examples, recipe.pace(), checkpoint, recipe.name)
    return eqx.tree_at(lambda s: s.network, student, network)


def untrained(theta: np.ndarray, space: ParameterSpace, recipe: AmplitudeRecipe) -> AmplitudeConditional:
    """A student whose features are fitted to draws (draw, param) and whose line is solved for."""
    index = space.index(recipe.parameter) if recipe.parameter in space.names else 0
    others, value = np.delete(theta, index, axis=1), theta[:, index].astype(np.float64)
    margins = fit_marginals(others)
    scores = np.asarray(jax.jit(jax.vmap(lambda row: margins.forward(row)[0]))(jnp.asarray(others)))
    whitening = whiten(scores)
    inverse = np.linalg.inv(whitening.mixing)
    features = (scores - whitening.shift) @ inverse.T
    slope = np.linalg.lstsq(features, value - value.mean(), rcond=None)[0]
    width = (value - value.mean() - features @ slope).std()
    single = lambda part: jnp.asarray(part, jnp.float32)  # noqa: E731
    network = initial_mixture_network(
        stream_key(recipe, INITIAL), single(slope / width), recipe.n_components, recipe.width, recipe.depth
    )
    return AmplitudeConditional(
        network=network,
        margins=margins,
        shift=single(whitening.shift),
        whitening=single(inverse),
        centre=single(value.mean()),
        width=single(width),
        space=space,
        parameter=recipe.parameter,
    )


def standardised(student: AmplitudeConditional, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (draw, others) and standardised values (draw, 1) of draws (draw, param)."""
    index = student.space.index(student.parameter)
    features = np.asarray(_features(student, jnp.asarray(theta)))
    return features, np.asarray((theta[:, index, None] - student.centre) / student.width)


def negative_log_prob(network: MixtureNetwork, features: Array, value: Array) -> Scalar:
    """Loss of one draw, in standardised units."""
    return -network(features).log_prob(value[0])


def physical(space: ParameterSpace, phi: np.ndarray) -> np.ndarray:
    """Theta (draw, param) of phi (draw, param)."""
    return np.asarray(to_physical(space, jnp.asarray(phi)))


class Lines(NamedTuple):
    """A teacher's normalised densities along lines of one parameter.

    Attributes:
        value: (line, point) of the parameter, evenly spaced.
        log_density: (line, point).
    """

    value: np.ndarray
    log_density: np.ndarray

    def integral(self, values: np.ndarray) -> np.ndarray:
        """Of values (line, point) by the trapezoidal rule, (line,)."""
        return np.trapezoid(values, self.value, axis=1)


def exact_conditional(
    teacher: DiffusionPrior, phi: np.ndarray, index: int, span: tuple[float, float]
) -> Lines:
    """The teacher's density of one parameter given the others, on a grid.

    Args:
        teacher: its density is exact.
        phi: (line, param) the others; the parameter's own value plays no part.
        index: of the parameter; one without bounds.
        span: least and largest value to look at.

    Raises:
        TrainingError: a density is not finite.
    """

    def along(value: np.ndarray) -> np.ndarray:
        rows = np.repeat(phi, value.shape[1], axis=0)
        rows[:, index] = value.ravel()
        found = log_density(teacher, rows).reshape(value.shape)
        if not np.isfinite(found).all():
            raise TrainingError("finite densities", "others", "amplitude student", "Look at the teacher.")
        return found

    coarse = np.broadcast_to(np.linspace(*span, _COARSE), (len(phi), _COARSE)).astype(np.float32)
    seen = along(coarse)
    seen = seen > seen.max(axis=1, keepdims=True) - _NEGLIGIBLE
    step = coarse[0, 1] - coarse[0, 0]
    low = np.where(seen, coarse, np.inf).min(axis=1) - step
    high = np.where(seen, coarse, -np.inf).max(axis=1) + step
    value = np.linspace(low, high, _FINE, axis=1).astype(np.float32)
    density = along(value)
    lines = Lines(value.astype(np.float64), density)
    peak = density.max(axis=1, keepdims=True)
    return lines._replace(
        log_density=density - peak - np.log(lines.integral(np.exp(density - peak)))[:, None]
    )


def measure_amplitude(
    student: AmplitudeConditional, teacher: DiffusionPrior, recipe: AmplitudeRecipe, key: Array
) -> tuple[Measure, ...]:
    """How far a conditional density is from its teacher's.

    Args:
        student: the student.
        teacher: its teacher.
        recipe: for the numbers of draws.
        key: for the draws; not one that the student was trained with.

    Returns:
        `kl` of the student from the teacher's conditional [nat], mean over draws of the others, and `kl_90`,
        its 90th percentile; `efficiency` of its draws weighted by teacher / student; `width_ratio`, the mean
        ratio of standard deviations; and `pit_decile`, the largest departure of the share of fresh draws in a
        tenth of the student's distribution function from a tenth.

    Raises:
        TrainingError: a density is not finite.
    """
    index = student.space.index(student.parameter)
    phi = draw_pairs(teacher, max(recipe.n_pit, recipe.n_test), key)[1]
    theta = physical(student.space, phi)
    own = phi[:, index]
    lines = exact_conditional(
        teacher, phi[: recipe.n_test], index, (float(own.min()) - 1.0, float(own.max()) + 1.0)
    )
    guess = np.asarray(
        _along(student, jnp.asarray(theta[: recipe.n_test]), jnp.asarray(lines.value, jnp.float32))
    )
    density, difference = np.exp(lines.log_density), lines.log_density - guess
    divergence = lines.integral(density * difference)
    centre = lines.integral(density * lines.value)
    width = np.sqrt(lines.integral(density * (lines.value - centre[:, None]) ** 2))
    ratio = np.asarray(_widths(student, jnp.asarray(theta[: recipe.n_test]))) / width
    quantile = np.asarray(_quantiles(student, jnp.asarray(theta), jnp.asarray(own)))
    share = np.histogram(quantile, np.linspace(0, 1, 11))[0] / len(quantile)
    spread = np.quantile(
        divergence, np.clip(0.9 + 0.3 / math.sqrt(len(divergence)) * np.array([-1, 1]), 0, 1)
    )
    return (
        mean("kl", divergence),
        Measure("kl_90", float(np.quantile(divergence, 0.9)), float(np.ptp(spread)) / 2),
        mean("efficiency", 1.0 / lines.integral(density * np.exp(difference))),
        mean("width_ratio", ratio),
        Measure("pit_decile", float(np.abs(share - 0.1).max()), 0.3 / math.sqrt(len(quantile))),
    )


@eqx.filter_jit
def _features(student, theta):
    return jax.vmap(student.features)(theta)


@eqx.filter_jit
def _along(student, theta, values):
    return jax.vmap(lambda row, line: jax.vmap(student.mixture(row).log_prob)(line))(theta, values)


@eqx.filter_jit
def _widths(student, theta):
    return jax.vmap(lambda row: student.mixture(row).moments()[1])(theta)


@eqx.filter_jit
def _quantiles(student, theta, values):
    return jax.vmap(lambda row, value: student.mixture(row).cdf(value))(theta, values)
