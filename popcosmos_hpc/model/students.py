"""Students of a diffusion prior: a flow with a fast exact density, and a map of one step.

A student imitates its teacher, so it carries its measured error and refuses uses for which that is too
large. `training.prior_student` trains and measures them; `model.student_bundle` reads them.
"""

from math import log, pi
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import StandardNormal, Transformed
from flowjax.flows import coupling_flow
from jax import Array
from jax.scipy.linalg import solve_triangular
from jaxtyping import Float, Scalar

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.marginals import Marginals
from popcosmos_hpc.model.prior import AbstractPrior
from popcosmos_hpc.model.student_uses import Measure, require_use, uses_of
from popcosmos_hpc.parameters import ParameterSpace


class Student(AbstractPrior):
    """A prior that imitates another one, with base density N(0, I), in standardised space.

    Args:
        shift: (param,) of phi = shift + mixing x.
        mixing: (param, param).
        space: the parameters.
        accuracy: measured against the teacher; empty before it is.
    """

    kind: ClassVar[str]
    shift: Float[Array, " param"]
    mixing: Float[Array, "param param"]
    space: ParameterSpace = eqx.field(static=True)
    accuracy: tuple[Measure, ...] = eqx.field(static=True)

    def base_log_prob(self, u: Float[Array, " param"]) -> Scalar:
        """Ln N(u; 0, I)."""
        return -0.5 * jnp.sum(u * u) - 0.5 * u.shape[0] * log(2 * pi)

    def sample_base(self, key: Array) -> Float[Array, " param"]:
        """Standard normal draw."""
        return jax.random.normal(key, self.shift.shape, self.shift.dtype)

    def sample(self, key: Array) -> Float[Array, " param"]:
        """A draw of phi."""
        return self.transport(self.sample_base(key))

    def uses(self) -> tuple[str, ...]:
        """The uses for which the student is accurate enough."""
        return uses_of(self.kind, self.accuracy)

    def require(self, use: str) -> None:
        """Refuse a use for which the student is not accurate enough; errors as for `require_use`."""
        require_use(self.kind, self.accuracy, use)


class FlowShape(NamedTuple):
    """Size of a coupling flow.

    Attributes:
        n_layers: coupling layers.
        width: units per hidden layer of a layer's network.
        depth: its hidden layers.
        n_knots: inner knots of each spline.
        interval: the splines act between -interval and interval, in standard deviations.
    """

    n_layers: int = 8
    width: int = 128
    depth: int = 2
    n_knots: int = 8
    interval: float = 6.0


def initial_flow(key: Array, size: int, shape: FlowShape) -> Transformed:
    """An untrained flow, close to the identity: coupling layers of rational-quadratic splines.

    Durkan et al. 2019, arXiv:1906.04032. Oriented so that the density, which training differentiates,
    runs the splines forward.

    Args:
        key: random key.
        size: dimensions.
        shape: see `FlowShape`.

    Raises:
        ConfigurationError: fewer than two dimensions, or a size that is not positive.
    """
    if size < 2 or min(shape) <= 0:
        raise ConfigurationError(
            "two dimensions or more, and positive sizes", f"{size} and {shape}", "flow student"
        )
    flow = coupling_flow(
        jax.random.wrap_key_data(key),
        base_dist=StandardNormal((size,)),
        transformer=RationalQuadraticSpline(knots=shape.n_knots, interval=shape.interval),
        flow_layers=shape.n_layers,
        nn_width=shape.width,
        nn_depth=shape.depth,
        nn_activation=jax.nn.silu,
    )
    last = lambda f: (flow_networks(f).layers[-1].weight, flow_networks(f).layers[-1].bias)  # noqa: E731
    return eqx.tree_at(last, flow, replace_fn=lambda part: 0.01 * part)


def flow_networks(flow: Transformed) -> eqx.nn.MLP:
    """The networks of a flow's layers, stacked: each array has a leading axis (layer,)."""
    return flow.bijection.bijection.bijection.bijections[0].conditioner  # type: ignore[attr-defined]


class FlowStudent(Student):
    """A normalising flow: an exact density and exact draws, each in one pass.

    Phi, or its normal scores by the teacher's own margins, is shift + mixing x; mixing is lower triangular.

    Args:
        marginals: of x, to normal scores y.
        flow: over y.
        shape: of the flow.
        margins: the teacher's, of phi; none for a teacher without.
    """

    marginals: Marginals
    flow: Transformed
    shape: FlowShape = eqx.field(static=True)
    margins: Marginals | None = None
    kind = "flow"

    def transport(self, u: Float[Array, " param"]) -> Float[Array, " param"]:
        """Latent phi of a base point; not the teacher's phi of it, though distributed alike."""
        scores = self.shift + self.mixing @ self.marginals.inverse(self.flow.bijection.transform(u))
        return scores if self.margins is None else self.margins.inverse(scores)

    def log_prob(self, phi: Float[Array, " param"]) -> Scalar:
        """Normalised ln density of phi."""
        scores, first_slope = (phi, 0.0) if self.margins is None else self.margins.forward(phi)
        x = solve_triangular(self.mixing, scores - self.shift, lower=True)
        y, log_slope = self.marginals.forward(x)
        return self.flow.log_prob(y) + first_slope + log_slope - jnp.sum(jnp.log(jnp.diag(self.mixing)))


class MapStudent(Student):
    """The teacher's transport as one network: phi = shift + mixing (u + network(u)).

    Its mixing is the best linear map of u, so that the network learns what departs from it.

    Args:
        network: (param,) to (param,).
    """

    network: eqx.nn.MLP
    kind = "map"

    def transport(self, u: Float[Array, " param"]) -> Float[Array, " param"]:
        """Latent phi of a base point: an approximation of the teacher's, point by point."""
        return self.shift + self.mixing @ (u + self.network(u))

    def log_prob(self, phi: Float[Array, " param"]) -> Scalar:
        """None: the map need not be invertible.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(
            "a prior with a density", "a one-step map, which has none", "map student",
            "Use a flow student, or the teacher.",
        )  # fmt: skip


def initial_network(key: Array, size: int, width: int, depth: int) -> eqx.nn.MLP:
    """An untrained network of a map, whose output is small.

    Args:
        key: random key.
        size: dimensions.
        width: units per hidden layer.
        depth: hidden layers.
    """
    network = eqx.nn.MLP(size, size, width, depth, jax.nn.silu, key=key)
    last = lambda n: (n.layers[-1].weight, n.layers[-1].bias)  # noqa: E731
    return eqx.tree_at(last, network, replace_fn=lambda part: 0.01 * part)
