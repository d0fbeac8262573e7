"""How far a posterior can be trusted: effective size, agreement of ensembles, fit to the data."""

import jax
import jax.numpy as jnp

from popcosmos_hpc.errors import ConfigurationError, Status
from popcosmos_hpc.inference.sampler import Posterior
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.prior import LOWEST
from popcosmos_hpc.photometry import BandState, Photometry

_REPLICAS = 16
_TINY = 1e-30
POOR_FIT_PPP = 1e-3
"""Posterior-predictive p below which a fit is flagged."""


def between_over_within(ensembles):
    """Variance of the ensembles' means over the mean variance within, (param,).

    Args:
        ensembles: (ensemble, particle, param) independent ensembles of draws of one posterior.
    """
    between = jnp.var(jnp.mean(ensembles, axis=1), axis=0, ddof=1)
    within = jnp.mean(jnp.var(ensembles, axis=1), axis=0)
    return (between + _TINY) / (within + _TINY)


def rhat(ensembles):
    """Largest potential scale reduction over the parameters, () (Gelman & Rubin 1992).

    Args:
        ensembles: (ensemble, particle, param).
    """
    return jnp.sqrt(1.0 + jnp.max(between_over_within(ensembles)))


def effective_size(ensembles):
    """Effective number of independent draws in all ensembles together, ().

    The means of independent ensembles scatter by the true Monte Carlo error, whatever the particles of
    one ensemble share; few ensembles leave that scatter uncertain, hence the mean over parameters.

    Args:
        ensembles: (ensemble, particle, param).
    """
    n_ensembles, n_particles, _ = ensembles.shape
    size = n_ensembles / jnp.mean(between_over_within(ensembles))
    return jnp.minimum(size, float(n_ensembles * n_particles))


def predictive_p(key, model: GalaxyModel, theta, photometry: Photometry):
    """Posterior-predictive p of the observed bands, ().

    The discrepancy is -2 ln density of the standardised residuals (chi^2 for Gaussian noise); replicated
    residuals follow the likelihood's own family. 1 if no band is observed.

    Args:
        key: random key.
        model: the galaxy model.
        theta: (draw, param).
        photometry: of one galaxy.
    """
    predicted, variance = jax.vmap(model.moments)(theta)
    observed = jnp.broadcast_to(photometry.state == BandState.OBSERVED, predicted.shape)
    sigma = jnp.sqrt(jnp.broadcast_to(photometry.flux_err**2, predicted.shape) + variance)
    residual = (jnp.broadcast_to(photometry.flux, predicted.shape) - predicted) / sigma
    total = lambda r, mask: jnp.sum(jnp.where(mask, model.likelihood.discrepancy(r), 0.0), -1)  # noqa: E731
    noise = model.likelihood.standard_noise(key, (_REPLICAS, *predicted.shape))
    replicated = total(noise, jnp.broadcast_to(observed, noise.shape))
    return jnp.mean(replicated >= jnp.broadcast_to(total(residual, observed), replicated.shape))


def certify(
    key,
    model: GalaxyModel,
    photometry: Photometry,
    ensembles,
    drawn: tuple,
    *,
    thresholds: tuple,
    **fields,
) -> Posterior:
    """Judge ensembles and put the posterior together.

    Args:
        key: random key.
        model: the galaxy model.
        photometry: of one galaxy.
        ensembles: (ensemble, particle, param) base-space particles.
        drawn: parameters (draw, param), ln base densities and ln likelihoods (draw,) of the draws returned.
        thresholds: largest R-hat and smallest ESS of a converged posterior.
        fields: the other fields of `Posterior`.
    """
    theta, log_prior, log_likelihood = drawn
    size, split = effective_size(ensembles), rhat(ensembles)
    ppp = predictive_p(key, model, theta, photometry)
    broken = ~jnp.all(jnp.isfinite(theta)) | ~jnp.all(log_likelihood > LOWEST / 2) | ~jnp.isfinite(split)
    converged = (split <= thresholds[0]) & (size >= thresholds[1])
    status = jnp.where(ppp < POOR_FIT_PPP, Status.POOR_FIT.value, Status.OK.value)
    status = jnp.where(converged, status, Status.NOT_CONVERGED.value)
    status = jnp.where(broken, Status.NUMERICAL_FAILURE.value, status)
    blank = lambda x: jnp.where(broken, jnp.nan, x)  # noqa: E731
    return Posterior(
        theta=blank(theta),
        log_prior=blank(log_prior),
        log_likelihood=blank(log_likelihood),
        ess=blank(size),
        rhat=blank(split),
        ppp=blank(ppp),
        max_weight=jnp.full((), jnp.nan),
        n_distinct=distinct(log_likelihood).astype(jnp.int32),
        pool_row=jnp.full(theta.shape[0], -1, jnp.int32),
        status=status.astype(jnp.int32),
        **fields,
    )


def evenly(ensembles, draws: int):
    """Particles (draw, param) at even spacing from all ensembles (ensemble, particle, param)."""
    flat = ensembles.reshape((-1, ensembles.shape[-1]))
    # In integers: float32 would misplace the last of many.
    rows = [(2 * i + 1) * flat.shape[0] // (2 * draws) for i in range(draws)]
    return flat[jnp.asarray(rows, jnp.int32)]


def evaluate_draws(model: GalaxyModel, photometry: Photometry, u):
    """Parameters (draw, param), ln base densities and ln likelihoods (draw,) of u (draw, param)."""
    log_likelihood = jax.vmap(lambda u: model.log_likelihood(u, photometry))(u)
    return jax.vmap(model.theta)(u), jax.vmap(model.log_prior)(u), log_likelihood


def distinct(value):
    """Number of different values, ()."""
    ordered = jnp.sort(value)
    return 1 + jnp.sum(ordered[1:] != ordered[:-1])


def require(satisfied: bool, expected: str, where: str):
    """Refuse a sampler's setting.

    Raises:
        ConfigurationError: the condition is not satisfied.
    """
    if not satisfied:
        raise ConfigurationError(expected, "other values", where)
