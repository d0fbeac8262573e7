"""Priors: a density and a transport in base space, with draws.

Sampling happens in base space u; `transport` takes u to the latent phi.
"""

from abc import abstractmethod
from math import log, pi

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, Scalar

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.mass_function import MASS_RANGE, MassRedshift
from popcosmos_hpc.model.transforms import LATENT_LIMIT, box, probit_mask, to_latent, to_physical
from popcosmos_hpc.parameters import POP_COSMOS, ParameterSpace

LOWEST = -1e30
"""Stands for a log density of minus infinity; finite, so that sums and differences stay numbers."""
_RATIOS = tuple(f"logsfr_ratio{index}" for index in range(1, 7))
_UNIFORM = ("lnfagn", "lnagntau", "gaslog10U")
_PLAIN = ("N", "redshift")
_RATIO_SCALE = 0.3


class AbstractPrior(eqx.Module):
    """Prior over the parameters of one galaxy.

    Attributes:
        space: the parameters.
    """

    space: eqx.AbstractVar[ParameterSpace]

    @abstractmethod
    def transport(self, u: Float[Array, " param"]) -> Float[Array, " param"]:
        """Base-space point to latent phi."""

    @abstractmethod
    def base_log_prob(self, u: Float[Array, " param"]) -> Scalar:
        """Normalised ln density of u."""

    @abstractmethod
    def sample_base(self, key: Array) -> Float[Array, " param"]:
        """A draw of u."""

    @abstractmethod
    def log_prob(self, phi: Float[Array, " param"]) -> Scalar:
        """Normalised ln density of phi."""

    def propose_base(self, key: Array) -> tuple[Float[Array, " param"], Scalar]:
        """A draw from a wide distribution q that covers the prior, and its ln p(u) - ln q(u).

        A pool of such draws starts the samplers. The default is the prior itself, with weight zero;
        override it where likely galaxies are rare in the prior.
        """
        return self.sample_base(key), jnp.zeros(())


def base_of_draw(prior: AbstractPrior, key: Array, number) -> Float[Array, " param"]:
    """Base-space point of draw `number`, () uint32, of a stream: it depends on nothing else."""
    return prior.sample_base(jax.random.fold_in(key, number))


class GaussianPrior(AbstractPrior):
    """Multivariate normal in phi; N(0, I) in base space: phi = mean + L u.

    Args:
        space: the parameters.
        mean: (param,) of phi.
        cholesky: (param, param) lower factor L of the covariance of phi.
    """

    mean: Float[Array, " param"]
    cholesky: Float[Array, "param param"]
    space: ParameterSpace = eqx.field(static=True)

    def __init__(self, space: ParameterSpace, mean, cholesky):
        self.space = space
        self.mean = jnp.asarray(mean, jnp.float32)
        self.cholesky = jnp.asarray(cholesky, jnp.float32)

    def transport(self, u: Float[Array, " param"]) -> Float[Array, " param"]:
        """Phi = mean + L u."""
        return self.mean + self.cholesky @ u

    def base_log_prob(self, u: Float[Array, " param"]) -> Scalar:
        """Ln N(u; 0, I)."""
        return -0.5 * jnp.sum(u * u) - 0.5 * u.shape[0] * log(2 * pi)

    def sample_base(self, key: Array) -> Float[Array, " param"]:
        """Standard normal draw."""
        return jax.random.normal(key, self.mean.shape)

    def log_prob(self, phi: Float[Array, " param"]) -> Scalar:
        """Ln N(phi; mean, L L^T)."""
        u = solve_triangular(self.cholesky, phi - self.mean, lower=True)
        return self.base_log_prob(u) - jnp.sum(jnp.log(jnp.abs(jnp.diag(self.cholesky))))


def _log_truncated_normal(x, mean, sigma, lower, upper):
    """Ln density of a normal truncated to (lower, upper)."""
    mass = ndtr((upper - mean) / sigma) - ndtr((lower - mean) / sigma)
    return -0.5 * ((x - mean) / sigma) ** 2 - jnp.log(sigma * mass) - 0.5 * log(2 * pi)


def _truncated_normal_quantile(uniform, mean, sigma, lower, upper):
    low, high = ndtr((lower - mean) / sigma), ndtr((upper - mean) / sigma)
    return jnp.clip(mean + sigma * ndtri(low + uniform * (high - low)), lower, upper)


def _metallicity_moments(log_mass):
    """Mean and sigma of log10 Z/Zsun at a mass: a smooth fit to Gallazzi et al. 2005."""
    mean = -0.25933163 + 0.38391743 * jnp.tanh(2.0229099 * log_mass - 20.37321787)
    sigma = 0.6883885 - 0.37122853 * jnp.tanh(2.47629773 * log_mass - 25.74109587)
    return mean, sigma


def _dust_index_mean(dust2):
    return -0.095 + 0.111 * dust2 - 0.0066 * dust2**2


class AnalyticPrior(AbstractPrior):
    r"""Baseline prior of the pop-cosmos papers (Thorp et al. 2024, arXiv:2406.19437, section 2).

    .. math:: p(z, M)\, p(Z|M)\, p(Z_{gas}|Z)\, \prod p(r_i)\, p(\tau_2)\, p(\tau_1/\tau_2)\, p(n|\tau_2)

    times uniforms. p(z, M) is a double Schechter mass function (its coefficients clamped beyond z = 3)
    times dV/dz for 7 < log10 M < 13; stellar metallicity is a truncated normal whose mean and width
    depend on mass; gas metallicity is uniform above the stellar one; SFR ratios are Student-t; dust
    terms are truncated normals. Every factor is normalised, so draws and density agree. The reference
    code normalises the metallicity term at the metallicity itself rather than at its mean; that is not
    followed here. Mass enters as N = distance modulus - 2.5 log10 M.

    The base space holds N and the latent redshift as they are, and every other parameter as the
    standard normal variate of its conditional distribution. Sampled in phi, the heavy tails of the SFR
    ratios and the edge at gas = stellar metallicity slow every sampler down.

    Args:
        space: the 16 pop-cosmos parameters; the bounds of its redshift end the redshift range.
        redshift_min: lower end of the redshift range.
        redshift_max: upper end; the space's bound if None.

    Raises:
        ConfigurationError: a parameter is missing or the redshift range is empty or outside the space.
    """

    mass_redshift: MassRedshift
    space: ParameterSpace = eqx.field(static=True)

    def __init__(self, space=POP_COSMOS, redshift_min=1e-3, redshift_max=None):
        if set(space.names) != set(POP_COSMOS.names):
            raise ConfigurationError(
                f"the parameters {', '.join(POP_COSMOS.names)}", ", ".join(space.names), "analytic prior"
            )
        bound = space.parameters[space.index("redshift")]
        high = bound.upper if redshift_max is None else redshift_max
        if not (0.0 < redshift_min < high <= bound.upper and redshift_min >= bound.lower):
            raise ConfigurationError(
                f"a redshift range inside {bound.lower} to {bound.upper}, above zero",
                f"{redshift_min} to {high}",
                "analytic prior",
            )
        self.space = space
        self.mass_redshift = MassRedshift(redshift_min, high)

    def transport(self, u: Float[Array, " param"]) -> Float[Array, " param"]:
        """Phi of a base-space point: conditional quantiles, in the order of their conditions."""
        base = dict(zip(self.space.names, u, strict=True))
        redshift, log_mass = self._mass_and_redshift(u)
        value = {"redshift": redshift, "N": base["N"]}
        uniform = {name: ndtr(base[name]) for name in self.space.names if name not in _PLAIN}
        value["log10Z"] = _truncated_normal_quantile(
            uniform["log10Z"], *_metallicity_moments(log_mass), *self._bounds("log10Z")
        )
        gas_high = self._bounds("gaslog10Z")[1]
        value["gaslog10Z"] = value["log10Z"] + (gas_high - value["log10Z"]) * uniform["gaslog10Z"]
        value["dust2"] = _truncated_normal_quantile(uniform["dust2"], 0.3, 1.0, *self._bounds("dust2"))
        value["dust1_fraction"] = _truncated_normal_quantile(
            uniform["dust1_fraction"], 1.0, 0.3, *self._bounds("dust1_fraction")
        )
        value["dust_index"] = _truncated_normal_quantile(
            uniform["dust_index"], _dust_index_mean(value["dust2"]), 0.4, *self._bounds("dust_index")
        )
        for name in _RATIOS:
            value[name] = self._ratio_quantile(uniform[name], name)
        for name in _UNIFORM:
            lower, upper = self._bounds(name)
            value[name] = lower + (upper - lower) * uniform[name]
        phi = to_latent(self.space, jnp.stack([value[name] for name in self.space.names]))
        return phi.at[self.space.index("redshift")].set(base["redshift"])

    def base_log_prob(self, u: Float[Array, " param"]) -> Scalar:
        """Ln density of u: p(z, M) for the plain coordinates, standard normals for the others."""
        redshift, log_mass = self._mass_and_redshift(u)
        inside = (log_mass > MASS_RANGE[0]) & (log_mass < MASS_RANGE[1])
        low, high = self.mass_redshift.redshift_min, self.mass_redshift.redshift_max
        inside &= (redshift >= low) & (redshift <= high)
        pair = self.mass_redshift.log_prob(jnp.clip(redshift, low, high), jnp.clip(log_mass, *MASS_RANGE))
        lower, upper = self._bounds("redshift")
        # d log10 M = 0.4 dN, d z = (upper - lower) N(phi) dphi: the latter joins the normals below.
        jacobian = log(0.4) + log(upper - lower)
        normal = jnp.where(jnp.asarray([name != "N" for name in self.space.names]), u**2 + log(2 * pi), 0.0)
        total = pair + jacobian - 0.5 * jnp.sum(normal)
        return jnp.where(inside & jnp.isfinite(total), total, LOWEST)

    def _mass_and_redshift(self, u):
        """Redshift, and log10 of the mass formed."""
        lower, upper = self._bounds("redshift")
        redshift = lower + (upper - lower) * ndtr(u[self.space.index("redshift")])
        low, high = self.mass_redshift.redshift_min, self.mass_redshift.redshift_max
        modulus = self.mass_redshift.distance_modulus(jnp.clip(redshift, low, high))
        return redshift, 0.4 * (modulus - u[self.space.index("N")])

    def log_prob(self, phi: Float[Array, " param"]) -> Scalar:
        """Ln density of phi, Jacobian of the probit included; about -1e30 outside the support."""
        theta = to_physical(self.space, phi)
        mask, (_, width) = probit_mask(self.space), box(self.space)
        jacobian = -0.5 * phi**2 - 0.5 * log(2 * pi) + np.log(width)
        density = self._log_density(theta) + jnp.sum(jnp.where(mask, jacobian, 0.0))
        return jnp.where(jnp.isnan(density), LOWEST, jnp.maximum(density, LOWEST))

    def _log_density(self, theta):
        """Ln density of theta."""
        value = dict(zip(self.space.names, theta, strict=True))
        low, high = self.mass_redshift.redshift_min, self.mass_redshift.redshift_max
        inside = (value["redshift"] >= low) & (value["redshift"] <= high)
        redshift = jnp.clip(value["redshift"], low, high)
        log_mass = 0.4 * (self.mass_redshift.distance_modulus(redshift) - value["N"])
        inside &= (log_mass > MASS_RANGE[0]) & (log_mass < MASS_RANGE[1])
        inside &= value["gaslog10Z"] >= value["log10Z"]
        log_mass = jnp.clip(log_mass, *MASS_RANGE)
        total = self.mass_redshift.log_prob(redshift, log_mass) + log(0.4)  # d log10 M = 0.4 dN
        total += _log_truncated_normal(
            value["log10Z"], *_metallicity_moments(log_mass), *self._bounds("log10Z")
        )
        total -= jnp.log(jnp.maximum(self._bounds("gaslog10Z")[1] - value["log10Z"], 1e-6))
        total += self._log_dust(value)
        total += sum(self._log_ratio(value[name], name) for name in _RATIOS)
        total -= sum(log(self._bounds(name)[1] - self._bounds(name)[0]) for name in _UNIFORM)
        return jnp.where(inside, total, LOWEST)

    def _log_dust(self, value):
        diffuse, index = value["dust2"], value["dust_index"]
        return (
            _log_truncated_normal(diffuse, 0.3, 1.0, *self._bounds("dust2"))
            + _log_truncated_normal(value["dust1_fraction"], 1.0, 0.3, *self._bounds("dust1_fraction"))
            + _log_truncated_normal(index, _dust_index_mean(diffuse), 0.4, *self._bounds("dust_index"))
        )

    def _log_ratio(self, ratio, name):
        """Student-t with nu = 2, truncated to the symmetric bounds."""
        edge = self._bounds(name)[1] / _RATIO_SCALE
        inside = edge / np.sqrt(2.0 + edge**2)
        density = -1.5 * jnp.log1p(0.5 * (ratio / _RATIO_SCALE) ** 2)
        return density - log(2.0 * np.sqrt(2.0)) - log(_RATIO_SCALE) - np.log(inside)

    def _bounds(self, name: str) -> tuple[float, float]:
        parameter = self.space.parameters[self.space.index(name)]
        return parameter.lower, parameter.upper

    def sample_base(self, key: Array) -> Float[Array, " param"]:
        """A draw of u."""
        pair, rest = jax.random.split(key)
        return self._complete(rest, *self.mass_redshift.sample(pair))

    def propose_base(self, key: Array) -> tuple[Float[Array, " param"], Scalar]:
        """A draw with redshift and mass from a wide mixture, and its exact ln weight."""
        pair, rest = jax.random.split(key)
        redshift, log_mass, log_weight = self.mass_redshift.sample_wide(pair)
        return self._complete(rest, redshift, log_mass), log_weight

    def _complete(self, key, redshift, log_mass):
        """A base-space point of given redshift and mass; the other coordinates are normal."""
        u = jax.random.normal(key, (self.space.size,))
        lower, upper = self._bounds("redshift")
        latent = ndtri((redshift - lower) / (upper - lower))
        normalisation = self.mass_redshift.distance_modulus(redshift) - 2.5 * log_mass
        u = u.at[self.space.index("redshift")].set(jnp.clip(latent, -LATENT_LIMIT, LATENT_LIMIT))
        return u.at[self.space.index("N")].set(normalisation)

    def _ratio_quantile(self, uniform, name):
        edge = self._bounds(name)[1] / _RATIO_SCALE
        fraction = (2.0 * uniform - 1.0) * (edge / np.sqrt(2.0 + edge**2))
        return _RATIO_SCALE * fraction * jnp.sqrt(2.0 / (1.0 - fraction**2))
