"""Moves of particles that leave a tempered posterior invariant: Hamiltonian trajectories.

Half of an ensemble moves at a time, in coordinates whitened by the covariance of the other half, so
that the metric adapts to the galaxy and to the temperature without breaking detailed balance.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_SHRINKAGE = 0.05  # of the covariance towards its diagonal; a half has few particles per dimension
_FLOOR = 1e-6
_STEP_JITTER = 0.4  # relative width; breaks resonances of near-Gaussian targets


class Particles(NamedTuple):
    """Particles of every ensemble.

    Attributes:
        u: (ensemble, particle, param) base space.
        log_prior: (ensemble, particle).
        log_likelihood: (ensemble, particle).
    """

    u: Any
    log_prior: Any
    log_likelihood: Any


def whitening(particles):
    """Lower factor (param, param) of the shrunk covariance of particles (particle, param)."""
    centred = particles - jnp.mean(particles, axis=0, keepdims=True)
    covariance = centred.T @ centred / (particles.shape[0] - 1)
    diagonal = jnp.diag(jnp.diag(covariance) + _FLOOR)
    return jnp.linalg.cholesky((1 - _SHRINKAGE) * covariance + _SHRINKAGE * diagonal)


def trajectory(
    key,
    active: Particles,
    other,
    beta,
    step,
    n_leapfrog: int,
    evaluate: Callable[[Any], tuple[Any, Any]],
) -> tuple[Particles, Any]:
    """One Hamiltonian trajectory of every active particle (Duane et al. 1987; Neal 2011).

    Args:
        key: random key.
        active: (ensemble, half, ...) particles to move.
        other: (ensemble, half, param) particles that stay; they set the metric.
        beta: (ensemble,) inverse temperatures.
        step: (ensemble,) leapfrog step in whitened units.
        n_leapfrog: steps per trajectory.
        evaluate: u (param,) -> ln prior (), ln likelihood ().

    Returns:
        The particles after the move and the acceptance probability (ensemble, half).
    """
    factor = jax.vmap(whitening)(other)
    keys = jax.random.split(key, 3)
    shape = active.u.shape
    momentum = jax.random.normal(keys[0], shape)
    jitter = 1 + _STEP_JITTER * (jax.random.uniform(keys[1], shape[:2]) - 0.5)
    pace = (jnp.broadcast_to(step[:, None], shape[:2]) * jitter)[..., None]

    def tempered(u, beta):
        log_prior, log_likelihood = evaluate(u)
        return log_prior + beta * log_likelihood, (log_prior, log_likelihood)

    one = jax.value_and_grad(tempered, has_aux=True)
    everyone = jax.vmap(jax.vmap(one, (0, None)), (0, 0))

    def force(u):
        (_, parts), gradient = everyone(u, beta)
        whitened = jnp.einsum("epd,edk->epk", jnp.where(jnp.isfinite(gradient), gradient, 0.0), factor)
        return whitened, parts

    def leap(carry, _):
        u, momentum, pull, _ = carry
        momentum = momentum + 0.5 * pace * pull
        u = u + jnp.einsum("edk,epk->epd", factor, pace * momentum)
        pull, parts = force(u)
        return (u, momentum + 0.5 * pace * pull, pull, parts), None

    pull, parts = force(active.u)
    (u, final, _, parts), _ = jax.lax.scan(leap, (active.u, momentum, pull, parts), None, length=n_leapfrog)
    new = Particles(u, *parts)
    heat = jnp.broadcast_to(beta[:, None], shape[:2])
    gain = new.log_prior - active.log_prior + heat * (new.log_likelihood - active.log_likelihood)
    gain += 0.5 * (jnp.sum(momentum**2, -1) - jnp.sum(final**2, -1))
    probability = jnp.where(jnp.isfinite(gain), jnp.exp(jnp.minimum(gain, 0.0)), 0.0)
    accept = jax.random.uniform(keys[2], shape[:2]) < probability
    keep = lambda x, y: jnp.where(accept if x.ndim == 2 else accept[..., None], x, y)  # noqa: E731
    return Particles(*(keep(x, y) for x, y in zip(new, active, strict=True))), probability


