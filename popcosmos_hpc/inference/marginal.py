r"""The likelihood with the normalisation integrated out, and tempered SMC on it.

Precise photometry knows a galaxy's flux to a fraction of a per cent and its colours to little more, while all
else is known to tens of per cent. In base space such a posterior is a thin, curved sheet, on which moves of
any kind are short. The integral

.. math:: L(u) = \int L(N, \mathrm{rest}(u))\, q(N | \mathrm{rest}(u))\, dN

over a student's density of N costs no further pass through the emulator, for fluxes scale as
:math:`10^{-0.4 N}`, and leaves a posterior that is not thin. Draws get an N from their own conditional
afterwards. They are exact for the prior p(rest) q(N | rest), as those of `AmplitudeSampler` are.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from popcosmos_hpc.inference.amplitude import (
    MAGNITUDE,
    base_density,
    fit_amplitude,
    weigh_shapes,
)
from popcosmos_hpc.inference.diagnostics import require
from popcosmos_hpc.inference.pool import PoolTables, decode_rows, redshift_term, theta_of_rows
from popcosmos_hpc.inference.pool_start import PoolSMC
from popcosmos_hpc.model.amplitude import AmplitudeConditional
from popcosmos_hpc.model.fast_likelihood import log_prob_of_fluxes
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.model.likelihood import Likelihood
from popcosmos_hpc.model.prior import LOWEST
from popcosmos_hpc.photometry import Photometry

_REACH = 6.0  # standard deviations of the amplitude on either side of the best one
_NODES = 17  # of the integral: a sum over evenly spaced nodes converges beyond any power of their distance
_FINE_NODES = 97  # from which N is drawn
_CHUNK = 4096


class Nodes(eqx.Module):
    """Likelihood of one draw at evenly spaced N.

    Attributes:
        value: (node,) N.
        log_likelihood: (node,) of the photometry.
        log_density: (node,) of the posterior of N, not normalised.
        spacing: () distance of the nodes [mag].
    """

    value: Any
    log_likelihood: Any
    log_density: Any
    spacing: Any

    def log_integral(self):
        """Ln of the likelihood with N integrated out, ()."""
        return logsumexp(self.log_density) + jnp.log(self.spacing)

    def draw(self, uniform):
        """N of a posterior draw (), by its distribution function, straight between nodes.

        Args:
            uniform: () random number in [0, 1).
        """
        density = jnp.exp(self.log_density - jnp.max(self.log_density))
        cumulative = jnp.cumsum(0.5 * (density[1:] + density[:-1]))
        cumulative = jnp.concatenate([jnp.zeros(1), cumulative])
        return jnp.interp(uniform * cumulative[-1], cumulative, self.value)


def integrate(
    likelihood: Likelihood,
    conditional: AmplitudeConditional,
    theta,
    flux,
    fractional_variance,
    photometry: Photometry,
    n_nodes: int = _NODES,
) -> Nodes:
    """Likelihood of one draw over its normalisation.

    Args:
        likelihood: noise model.
        conditional: q(N | rest).
        theta: (param,) of the draw.
        flux: (band,) emulator fluxes of the draw [nanomaggies].
        fractional_variance: (band,) in squared fluxes.
        photometry: of one galaxy.
        n_nodes: values of N.
    """
    one = lambda x: x[:, None]  # noqa: E731
    best = fit_amplitude(likelihood, one(flux), one(fractional_variance), photometry)
    reach = _REACH * best.sd[0]
    log_factor = best.log_factor[0] + jnp.linspace(-reach, reach, n_nodes)
    value = theta[conditional.space.index(conditional.parameter)] - MAGNITUDE * log_factor
    scaled = one(flux) * jnp.broadcast_to(jnp.exp(log_factor), (flux.shape[0], n_nodes))
    variance = jnp.broadcast_to(one(fractional_variance), scaled.shape)
    log_likelihood = log_prob_of_fluxes(likelihood, scaled, variance, photometry)
    log_density = log_likelihood + jax.vmap(conditional.mixture(theta).log_prob)(value)
    # In order of increasing N.
    spacing = MAGNITUDE * 2.0 * reach / (n_nodes - 1)
    return Nodes(value[::-1], log_likelihood[::-1], log_density[::-1], spacing)


class MarginalModel(eqx.Module):
    """A galaxy model with N integrated out: its likelihood as a function of u, whose own N plays no part.

    Args:
        model: the galaxy model.
        conditional: q(N | rest).
    """

    model: GalaxyModel
    conditional: AmplitudeConditional

    def log_prior(self, u):
        """Ln of the base density, () ."""
        return self.model.log_prior(u)

    def log_likelihood(self, u, photometry: Photometry):
        """Ln of the integral of q(N | rest) p(photometry | N, rest) over N, (); finite for every u."""
        theta = self.model.theta(u)
        total = self._nodes(theta, photometry, _NODES).log_integral() + self._of_redshift(theta, photometry)
        return jnp.where(jnp.isfinite(total), jnp.maximum(total, LOWEST), LOWEST)

    def draw(self, key, u, photometry: Photometry):
        """Parameters (param,) with a new N, and their ln likelihood, ()."""
        theta = self.model.theta(u)
        nodes = self._nodes(theta, photometry, _FINE_NODES)
        value = nodes.draw(jax.random.uniform(key))
        log_likelihood = jnp.interp(value, nodes.value, nodes.log_likelihood)
        theta = theta.at[self.model.space.index(self.conditional.parameter)].set(value)
        return theta, jnp.maximum(log_likelihood + self._of_redshift(theta, photometry), LOWEST)

    def _nodes(self, theta, photometry: Photometry, n_nodes: int) -> Nodes:
        model = self.model
        variance = model.likelihood.error_floor**2 + model.emulator.sigma(model.redshift(theta)) ** 2
        flux = model.emulator(theta)
        return integrate(model.likelihood, self.conditional, theta, flux, variance, photometry, n_nodes)

    def _of_redshift(self, theta, photometry: Photometry):
        """Ln p(known redshift | redshift); redshifts outside the emulator's range have no likelihood."""
        redshift = self.model.redshift(theta)
        return jnp.where(
            self.model.covers(redshift), self.model.likelihood.redshift_log_prob(redshift, photometry), LOWEST
        )


class MarginalSMC(PoolSMC):
    """`PoolSMC` with the normalisation integrated out.

    Args:
        conditional: q(N | rest).
    """

    conditional: AmplitudeConditional | None = None

    identifier: ClassVar[int] = 7

    def __check_init__(self):
        require(self.conditional is not None, "an amplitude student", "sampler smc of a ladder")

    @property
    def _student(self) -> AmplitudeConditional:
        if self.conditional is None:
            raise ValueError("checked on construction")
        return self.conditional

    def target(self, model: GalaxyModel) -> MarginalModel:
        """The model with N integrated out."""
        return MarginalModel(model, self._student)

    def weigh_tiles(self, model: GalaxyModel, shared: PoolTables, photometry: Photometry):
        """Ln of what a row of each tile is worth, its N drawn anew, (tile,)."""
        return weigh_shapes(model, self._pool, shared, photometry)

    def weigh_rows(self, model: GalaxyModel, shared: PoolTables, photometry: Photometry, row):
        """Ln likelihood (row,) of rows of the pool with N integrated out."""
        rows, pool = decode_rows(self._pool, shared, row), self._pool

        def one(flux, variance, theta):
            found = integrate(model.likelihood, self._student, theta, flux, variance, photometry)
            return found.log_integral()

        columns = (rows.flux.T, rows.fractional_variance.T, theta_of_rows(pool, row))
        total = jax.lax.map(lambda column: one(*column), columns, batch_size=_CHUNK)
        total += redshift_term(model, pool, rows.redshift_code, photometry)
        return jnp.where(jnp.isfinite(total), jnp.maximum(total, LOWEST), LOWEST)

    def drawn(self, key, model: GalaxyModel, photometry: Photometry, u) -> tuple:
        """Particles u (draw, param) as draws of the posterior, each with an N of its own."""
        keys, target = jax.random.split(jax.random.fold_in(key, 5), u.shape[0]), self.target(model)
        theta, log_likelihood = jax.vmap(lambda key, u: target.draw(key, u, photometry))(keys, u)
        return theta, jax.vmap(lambda theta: base_density(model, theta))(theta), log_likelihood
