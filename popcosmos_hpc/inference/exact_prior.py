"""Weights that turn draws under an amplitude student into draws under the population itself.

Amplitude rungs sample the prior p(rest) q(N | rest). A draw's weight for the population is
p(N | rest) / q(N | rest), where p(N | rest) is the population's exact density over its integral along N. Each
density is an ordinary differential equation with a trace, so this takes tens of seconds per galaxy: for
samples, not for surveys.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popcosmos_hpc.inference.batch import density_along
from popcosmos_hpc.model.amplitude import AmplitudeConditional
from popcosmos_hpc.model.prior import AbstractPrior
from popcosmos_hpc.model.transforms import to_latent

_REACH = 4.5  # standard deviations of the student on either side
_NODES = 33


def exact_log_weights(
    prior: AbstractPrior, conditional: AmplitudeConditional, theta: Float[Array, "draw param"]
) -> np.ndarray:
    """Ln p(N | rest) - ln q(N | rest) of draws, (draw,) float64: importance weights for the population.

    Args:
        prior: the population; one whose `log_prob` is exact, such as a diffusion prior.
        conditional: the student that the draws were made with.
        theta: physical parameters of the draws.
    """
    index = prior.space.index(conditional.parameter)
    theta = jnp.asarray(theta)
    mean, sd = (np.asarray(x) for x in jax.lax.map(lambda row: conditional.mixture(row).moments(), theta))
    own = np.asarray(theta[:, index])
    low, high = np.minimum(mean - _REACH * sd, own), np.maximum(mean + _REACH * sd, own)
    nodes = np.linspace(low, high, _NODES, axis=1).astype(np.float32)
    values = np.concatenate([own[:, None], nodes], axis=1)
    phi = jax.lax.map(lambda row: to_latent(prior.space, row), theta)
    found = np.asarray(density_along(prior, phi, index, jnp.asarray(values)), np.float64)
    peak = found.max(axis=1, keepdims=True)
    integral = np.trapezoid(np.exp(found[:, 1:] - peak), nodes.astype(np.float64), axis=1)
    log_q = jax.lax.map(lambda row: conditional.log_prob(row[index], row), theta)
    return found[:, 0] - peak[:, 0] - np.log(integral) - np.asarray(log_q, np.float64)
