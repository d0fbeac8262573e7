r"""The density of one parameter given all others, in closed form: a conditional mixture of normals.

A galaxy's fluxes scale as 10^(-0.4 N) exactly, all else fixed, so N of a stored galaxy can be drawn anew
without the emulator, if the population's density of N given the rest is known. A diffusion prior's is an
integral over hundreds of passes through its network; this student's is one pass through a small one,

.. math:: q(N | \theta) = \sum_k w_k(\theta)\, \mathcal{N}(N;\, m_k(\theta),\, s_k(\theta)) .

Its many narrow components side by side also make an edge, such as a magnitude limit leaves.
"""

from math import log, pi
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float, Scalar

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.marginals import Marginals
from popcosmos_hpc.model.student_uses import Measure, require_use, uses_of
from popcosmos_hpc.parameters import ParameterSpace

_FARTHEST = 8.0  # standard deviations at which features are held
_LOG_SD = (-5.0, 2.0)  # of a component, in units of the parameter's residual width


class Mixture(NamedTuple):
    """A mixture of normal distributions.

    Attributes:
        log_weight: (component,) normalised.
        mean: (component,).
        sd: (component,).
    """

    log_weight: Array
    mean: Array
    sd: Array

    def log_prob(self, value: Scalar) -> Scalar:
        """Ln density at a value."""
        standard = (value - self.mean) / self.sd
        return logsumexp(self.log_weight - 0.5 * standard**2 - jnp.log(self.sd) - 0.5 * log(2 * pi))

    def cdf(self, value: Scalar) -> Scalar:
        """Probability of a smaller value."""
        return jnp.sum(jnp.exp(self.log_weight) * jax.scipy.special.ndtr((value - self.mean) / self.sd))

    def sample(self, key: Array) -> Scalar:
        """A draw."""
        which, where = jax.random.split(key)
        index = jax.random.categorical(which, self.log_weight)
        return self.mean[index] + self.sd[index] * jax.random.normal(where, (), self.mean.dtype)

    def moments(self) -> tuple[Scalar, Scalar]:
        """Mean and standard deviation."""
        weight = jnp.exp(self.log_weight)
        mean = jnp.sum(weight * self.mean)
        return mean, jnp.sqrt(jnp.sum(weight * (self.sd**2 + (self.mean - mean) ** 2)))


class MixtureNetwork(eqx.Module):
    """Features (feature,) to a mixture around a straight line.

    Args:
        network: (feature,) to (3 * component,): ln weights, departures from the line, ln widths.
        slope: (feature,) of the line.
    """

    network: eqx.nn.MLP
    slope: Float[Array, " feature"]

    def __call__(self, features: Float[Array, " feature"]) -> Mixture:
        """Mixture of the standardised parameter."""
        weight, departure, width = jnp.split(self.network(features), 3)
        sd = jnp.exp(jnp.clip(width, *_LOG_SD))
        return Mixture(jax.nn.log_softmax(weight), self.slope @ features + departure, sd)


def initial_mixture_network(
    key: Array, slope: Float[Array, " feature"], n_components: int, width: int, depth: int
) -> MixtureNetwork:
    """An untrained network: overlapping components beside each other, the same for all features.

    Args:
        key: random key.
        slope: of the line.
        n_components: of the mixture.
        width: units per hidden layer.
        depth: hidden layers.
    """
    network = eqx.nn.MLP(slope.shape[0], 3 * n_components, width, depth, jax.nn.silu, key=key)
    start = [jnp.zeros(n_components), jnp.linspace(-1.5, 1.5, n_components), jnp.full(n_components, -0.7)]
    last = lambda n: (n.layers[-1].weight, n.layers[-1].bias)  # noqa: E731
    network = eqx.tree_at(last, network, (0.01 * network.layers[-1].weight, jnp.concatenate(start)))
    return MixtureNetwork(network, slope)


class AmplitudeConditional(eqx.Module):
    """Density of one unbounded parameter given the others; a student of a population.

    It works on physical theta, since that is what is stored of draws.

    Args:
        network: features to a mixture.
        margins: of the other parameters, theta to normal scores (others, knot).
        shift: (others,) mean of the scores.
        whitening: (others, others): features = whitening (scores - shift).
        centre: of the parameter.
        width: of the parameter about the straight line.
        space: the parameters.
        parameter: the name of the one; theta = phi for it.
        accuracy: measured against the teacher; empty before it is.

    Raises:
        ConfigurationError: no such parameter, or a bounded one.
    """

    network: MixtureNetwork
    margins: Marginals
    shift: Float[Array, " others"]
    whitening: Float[Array, "others others"]
    centre: Scalar
    width: Scalar
    space: ParameterSpace = eqx.field(static=True)
    parameter: str = eqx.field(static=True)
    accuracy: tuple[Measure, ...] = eqx.field(static=True, default=())
    kind: ClassVar[str] = "amplitude"

    def __check_init__(self):
        free = [p.name for p in self.space.parameters if p.transform == "identity"]
        if self.parameter not in free:
            raise ConfigurationError(
                f"a parameter without bounds ({', '.join(free)})", repr(self.parameter), "amplitude student"
            )

    @property
    def n_components(self) -> int:
        """Of the mixture."""
        return self.network.network.layers[-1].bias.shape[0] // 3  # type: ignore[union-attr]

    def features(self, theta: Float[Array, " param"]) -> Float[Array, " others"]:
        """Whitened normal scores of the other parameters."""
        index = self.space.index(self.parameter)
        others = jnp.concatenate([theta[:index], theta[index + 1 :]])
        scores = self.margins.forward(others)[0]
        return jnp.clip(self.whitening @ (scores - self.shift), -_FARTHEST, _FARTHEST)

    def mixture(self, theta: Float[Array, " param"]) -> Mixture:
        """Mixture of the parameter given the others; theta's own value of it plays no part."""
        standard = self.network(self.features(theta))
        return Mixture(
            standard.log_weight, self.centre + self.width * standard.mean, self.width * standard.sd
        )

    def components(self, theta: Float[Array, " param"]) -> tuple[Array, Array, Array]:
        """Ln weights, means and standard deviations, each (component,), given physical theta (param,)."""
        found = self.mixture(theta)
        return found.log_weight, found.mean, found.sd

    def log_prob(self, value: Scalar, theta: Float[Array, " param"]) -> Scalar:
        """Ln density of a value of the parameter given the others in physical theta (param,)."""
        return self.mixture(theta).log_prob(value)

    def sample(self, key: Array, theta: Float[Array, " param"]) -> Scalar:
        """A value of the parameter given the others in physical theta (param,)."""
        return self.mixture(theta).sample(key)

    def uses(self) -> tuple[str, ...]:
        """The uses for which the student is accurate enough."""
        return uses_of(self.kind, self.accuracy)

    def require(self, use: str) -> None:
        """Refuse a use for which the student is not accurate enough; errors as for `require_use`."""
        require_use(self.kind, self.accuracy, use)
