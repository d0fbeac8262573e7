"""Weights from an amplitude student back to the population."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.inference.batch import transport_draws
from popcosmos_hpc.inference.exact_prior import exact_log_weights
from popcosmos_hpc.model.bundle import load_bundle
from popcosmos_hpc.model.student_bundle import load_amplitude

N_DRAWS = 48


@pytest.fixture(scope="module")
def prior():
    return load_bundle("kids9").prior("reference")


@pytest.fixture(scope="module")
def student():
    return load_amplitude("reference_amplitude", "conditional", "reference")


@pytest.fixture(scope="module")
def theta(prior, student):
    """Draws of p(rest) q(N | rest)."""
    drawn = transport_draws(prior, jax.random.PRNGKey(5), jnp.arange(N_DRAWS, dtype=jnp.uint32))
    keys = jax.random.split(jax.random.PRNGKey(6), N_DRAWS)
    return drawn.at[:, 0].set(jax.vmap(student.sample)(keys, drawn))


def test_weights_average_to_one_and_lose_few_draws(prior, student, theta):
    """E_q[p / q] = 1; the student's own measure of p / q is an efficiency of 0.97."""
    assert prior.space.names[0] == "N"
    weight = np.exp(exact_log_weights(prior, student, theta))
    assert abs(weight.mean() - 1.0) < 4.0 * weight.std() / np.sqrt(N_DRAWS) + 0.01
    assert weight.sum() ** 2 / np.sum(weight**2) > 0.85 * N_DRAWS


def test_a_wrong_student_is_corrected(prior, student, theta):
    """Draws of a student half a magnitude off: weights bring the mean of N back, at the cost of draws."""
    wrong = eqx.tree_at(lambda student: student.centre, student, student.centre + 0.5)
    moved = theta.at[:, 0].add(0.5)  # so are draws of it
    weight = np.exp(exact_log_weights(prior, wrong, moved))
    expected, sd = (np.asarray(x) for x in jax.vmap(lambda row: student.mixture(row).moments())(theta))
    departure = (np.asarray(moved[:, 0]) - expected) / sd
    size = weight.sum() ** 2 / np.sum(weight**2)
    assert size < 0.95 * N_DRAWS
    assert np.mean(departure) > 0.25
    assert abs(np.average(departure, weights=weight)) < 3.5 / np.sqrt(size)
    assert abs(np.average(departure, weights=weight)) < 0.6 * np.mean(departure)
