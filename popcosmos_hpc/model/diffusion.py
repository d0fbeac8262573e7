r"""Score-based diffusion: noise schedules, score network, transport and density.

A diffusion adds noise to standardised data x over a time t from nearly 0 to 1,

.. math:: x_t = \alpha(t)\, x_0 + \sigma(t)\, \epsilon .

The score of x_t defines an ordinary differential equation with the same marginals, the probability flow
(Song et al. 2021, arXiv:2011.13456, eq. 13), which takes base draws at t = 1 to data. It is solved with a
fixed number of steps, so the result for one galaxy depends on nothing but its own u. Steps are equal in a
clock s in which the flow is smooth; see `NoiseSchedule`.
"""

from collections.abc import Callable
from math import acos, exp, log, pi, sqrt
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Scalar

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.marginals import Marginals
from popcosmos_hpc.model.prior import AbstractPrior
from popcosmos_hpc.parameters import ParameterSpace

Kind = Literal["vp", "ve", "sub_vp"]
Clock = Literal["time", "angle"]
Output = Literal["score", "scaled_score", "velocity"]
_ACTIVATIONS = {"silu": jax.nn.silu, "tanh": jnp.tanh}
_CONSTANTS = {"vp": (0.1, 20.0, 1e-3), "sub_vp": (0.1, 20.0, 1e-5), "ve": (0.01, 10.0, 1e-5)}


class NoiseSchedule(eqx.Module):
    """How much noise there is at a time t in (t_min, 1).

    Args:
        kind: `vp` (variance preserving), `sub_vp` or `ve` (variance exploding); Song et al. 2021,
            arXiv:2011.13456, section 3.4.
        low: beta at t = 0 (vp, sub_vp) or the smallest sigma (ve); the reference's constant if None.
        high: beta at t = 1, or the largest sigma.
        t_min: where the flow ends, instead of 0.
        clock: the solver's steps are equal in s. `time`: s = sqrt(t), or t itself if variance explodes.
            `angle`, of `vp` alone: s = sqrt(angle), with alpha = cos(angle) and sigma = sin(angle). The flow
            is dx / d angle = velocity, so no step is lost where t changes and the noise does not.

    Raises:
        ConfigurationError: kind or clock is unknown, or the constants are not positive and in order.
    """

    kind: Kind = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    t_min: float = eqx.field(static=True)
    clock: Clock = eqx.field(static=True)

    def __init__(
        self,
        kind: str = "vp",
        low: float | None = None,
        high: float | None = None,
        t_min: float | None = None,
        clock: str = "time",
    ):
        if kind not in _CONSTANTS:
            raise ConfigurationError(f"one of {', '.join(_CONSTANTS)}", repr(kind), "noise schedule")
        given = zip((low, high, t_min), _CONSTANTS[kind], strict=True)
        first, last, end = (float(standard if value is None else value) for value, standard in given)
        if not (0.0 <= first < last and 0.0 < end < 1.0):
            raise ConfigurationError(
                "0 <= low < high and 0 < t_min < 1", f"{first}, {last}, {end}", "noise schedule"
            )
        if clock not in (("time", "angle") if kind == "vp" else ("time",)):
            raise ConfigurationError("the clock time, or angle with vp", f"{clock!r} with {kind}", "schedule")
        self.kind, self.low, self.high, self.t_min = kind, first, last, end  # type: ignore[assignment]
        self.clock = clock  # type: ignore[assignment]

    def _integral(self, t):
        """Integral of beta from 0 to t."""
        return self.low * t + 0.5 * (self.high - self.low) * t**2

    def scales(self, t: Scalar) -> tuple[Scalar, Scalar]:
        """Alpha and sigma of x_t = alpha x_0 + sigma noise."""
        if self.kind == "ve":
            return jnp.ones_like(t), self.low * (self.high / self.low) ** t
        noise = -jnp.expm1(-self._integral(t))
        return jnp.exp(-0.5 * self._integral(t)), jnp.sqrt(noise) if self.kind == "vp" else noise

    def drift(self, t: Scalar) -> Scalar:
        """F of the forward process dx = f x dt + g dw."""
        if self.kind == "ve":
            return jnp.zeros_like(t)
        return -0.5 * (self.low + (self.high - self.low) * t)

    def diffusion_squared(self, t: Scalar) -> Scalar:
        """Square of g of the forward process."""
        if self.kind == "ve":
            return self.scales(t)[1] ** 2 * 2.0 * log(self.high / self.low)
        beta = self.low + (self.high - self.low) * t
        return beta if self.kind == "vp" else beta * -jnp.expm1(-2.0 * self._integral(t))

    @property
    def _power(self) -> int:
        """S is a root of t or of the angle, in which sigma changes evenly."""
        return 1 if self.kind == "ve" else 2

    def _reading(self, t: float) -> float:
        """The clock s at a time."""
        hand = acos(exp(-0.5 * self._integral(t))) if self.clock == "angle" else t
        return hand ** (1.0 / self._power)

    @property
    def s_min(self) -> float:
        """Where the flow ends, on the clock."""
        return self._reading(self.t_min)

    @property
    def s_max(self) -> float:
        """Where the flow begins, on the clock."""
        return self._reading(1.0)

    def time(self, s: Scalar) -> Scalar:
        """Time t at the clock s."""
        if self.clock == "time":
            return s**self._power
        # The root of the integral, in the form that does not cancel.
        integral = -jnp.log1p(-(jnp.sin(s**2) ** 2))
        return 2.0 * integral / (self.low + jnp.sqrt(self.low**2 + 2.0 * (self.high - self.low) * integral))

    def pace(self, s: Scalar) -> Scalar:
        """Derivative dt/ds."""
        if self.clock == "time":
            return self._power * s ** (self._power - 1)
        return 4.0 * s * jnp.tan(s**2) / -(2.0 * self.drift(self.time(s)))

    @property
    def base_scale(self) -> float:
        """Standard deviation of the base draws at t = 1."""
        return self.high if self.kind == "ve" else 1.0


class ScoreNetwork(eqx.Module):
    """Multilayer perceptron of [sin 2 pi W s, cos 2 pi W s, x, condition], with s = t or sqrt(t).

    Args:
        weights: (in, out) per layer.
        biases: (out,) per layer.
        frequencies: W, (frequency,); fixed, never trained.
        activation: `silu` or `tanh`, of the hidden layers.
        time_power: s = t ** time_power.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    frequencies: Array
    activation: str = eqx.field(static=True, default="silu")
    time_power: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if self.activation not in _ACTIVATIONS:
            raise ConfigurationError(
                f"one of {', '.join(_ACTIVATIONS)}", repr(self.activation), "activation of the score network"
            )

    def __call__(self, t: Scalar, x: Float[Array, " dim"], condition: Array | None = None) -> Array:
        """Output (dim,) for x (dim,) and a condition (cond,) or None."""
        clock = t if self.time_power == 1.0 else t**self.time_power
        phase = 2.0 * pi * clock * jax.lax.stop_gradient(self.frequencies)
        parts = [jnp.sin(phase), jnp.cos(phase), x, *([] if condition is None else [condition])]
        hidden = jnp.concatenate(parts)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = _ACTIVATIONS[self.activation](hidden @ weight + bias)
        return hidden @ self.weights[-1] + self.biases[-1]


def initial_score_network(
    key: Array,
    size: int,
    n_condition: int = 0,
    width: int = 256,
    depth: int = 4,
    frequencies: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0),
) -> ScoreNetwork:
    """An untrained network in s = sqrt(t), whose output is small.

    The flow is smooth in s, so low frequencies do; the reference's (normal with sd 16, in t) make the
    solver work for nothing.

    Args:
        key: random key.
        size: dimensions of x.
        n_condition: dimensions of the condition.
        width: units per hidden layer.
        depth: hidden layers.
        frequencies: of the time embedding.
    """
    sizes = (2 * len(frequencies) + size + n_condition, *[width] * depth, size)
    keys = jax.random.split(key, len(sizes) - 1)
    weights = [
        jax.random.normal(k, (n_in, n_out)) * sqrt(2.0 / n_in)
        for k, n_in, n_out in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]
    weights[-1] = 0.01 * weights[-1]
    biases = tuple(jnp.zeros(n) for n in sizes[1:])
    return ScoreNetwork(tuple(weights), biases, jnp.asarray(frequencies), "silu", 0.5)


class Diffusion(eqx.Module):
    r"""A trained diffusion over standardised data.

    Args:
        network: (t, x, condition) -> output; a `ScoreNetwork`, or a score known exactly.
        schedule: see `NoiseSchedule`.
        output: what the network returns: the `score`; the `scaled_score` sigma times the score; or, for a
            variance-preserving schedule, the `velocity` :math:`v = \alpha\epsilon - \sigma x_0`
            (Salimans & Ho 2022, arXiv:2202.00512), which is zero for standard normal data, so that only
            departures from a normal distribution need to be learned.
        n_steps: steps of `transport`.

    Raises:
        ConfigurationError: velocity is asked of another schedule, or there are fewer than three steps.
    """

    network: Callable[..., Array]
    schedule: NoiseSchedule
    output: Output = eqx.field(static=True, default="velocity")
    n_steps: int = eqx.field(static=True, default=12)

    def __check_init__(self):
        if self.output not in ("score", "scaled_score", "velocity"):
            raise ConfigurationError("score, scaled_score or velocity", repr(self.output), "diffusion")
        if self.output == "velocity" and self.schedule.kind != "vp":
            raise ConfigurationError("a vp schedule for a velocity", repr(self.schedule.kind), "diffusion")
        if self.n_steps < 3:
            raise ConfigurationError("at least 3 steps", str(self.n_steps), "diffusion")

    def score(self, t: Scalar, x: Float[Array, " dim"], condition: Array | None = None) -> Array:
        """Gradient (dim,) of ln p_t at x."""
        value = self.network(t, x, condition)
        if self.output == "score":
            return value
        alpha, sigma = self.schedule.scales(t)
        return value / sigma if self.output == "scaled_score" else -x - alpha / sigma * value

    def flow(self, t: Scalar, x: Float[Array, " dim"], condition: Array | None = None) -> Array:
        """Velocity dx/dt (dim,) of the probability flow."""
        squared = self.schedule.diffusion_squared(t)
        if self.output == "velocity":
            alpha, sigma = self.schedule.scales(t)
            return 0.5 * squared * alpha / sigma * self.network(t, x, condition)
        return self.schedule.drift(t) * x - 0.5 * squared * self.score(t, x, condition)

    def _field(self, condition: Array | None) -> Callable[[Scalar, Array], Array]:
        """Velocity in s."""
        return lambda s, x: self.schedule.pace(s) * self.flow(self.schedule.time(s), x, condition)

    def transport(self, u: Float[Array, " dim"], condition: Array | None = None) -> Array:
        """Data x (dim,) of a standard normal base point u (dim,)."""
        start = u * self.schedule.base_scale
        first, last = self.schedule.s_max, self.schedule.s_min
        return adams_bashforth(self._field(condition), start, first, last, self.n_steps)

    def inverse(self, x: Float[Array, " dim"], condition: Array | None = None, n_steps: int = 40) -> Array:
        """Base point u (dim,) of data x (dim,); exact in the limit of many steps."""
        first, last = self.schedule.s_min, self.schedule.s_max
        end = adams_bashforth(self._field(condition), x, first, last, n_steps)
        return end / self.schedule.base_scale

    def log_prob(self, x: Float[Array, " dim"], condition: Array | None = None, n_steps: int = 40) -> Scalar:
        """Ln density of x (dim,): the exact trace of the flow's Jacobian, integrated; nothing random.

        Args:
            x: standardised data.
            condition: of a conditional diffusion.
            n_steps: steps of the solver.
        """
        field = self._field(condition)
        basis = jnp.eye(x.shape[0], dtype=x.dtype)

        def augmented(s, state):
            at = state[:-1]
            derivative = lambda direction: jax.jvp(lambda y: field(s, y), (at,), (direction,))[1]  # noqa: E731
            jacobian = jax.vmap(derivative)(basis)
            return jnp.append(field(s, at), jnp.trace(jacobian))

        start = jnp.append(x, jnp.zeros((), x.dtype))
        end = adams_bashforth(augmented, start, self.schedule.s_min, self.schedule.s_max, n_steps)
        u = end[:-1] / self.schedule.base_scale
        normal = -0.5 * jnp.sum(u * u) - u.shape[0] * (0.5 * log(2 * pi) + log(self.schedule.base_scale))
        return normal + end[-1]


def adams_bashforth(
    field: Callable[[Scalar, Array], Array], start: Array, first: float, last: float, n_steps: int
) -> Array:
    """Solve dy/ds = field(s, y) by the third-order Adams-Bashforth method, begun by Heun's.

    Args:
        field: right-hand side.
        start: y (size,) at s = first.
        first: where to begin.
        last: where to end; may be smaller.
        n_steps: equal steps, at least three; n_steps + 1 evaluations of the field.

    Returns:
        y (size,) at s = last.
    """
    step = (last - first) / n_steps
    at = lambda index: jnp.asarray(first + index * step, start.dtype)  # noqa: E731
    slope0 = field(at(0), start)
    slope = 0.5 * (slope0 + field(at(1), start + step * slope0))
    y = start + step * slope
    slope1 = field(at(1), y)
    y = y + step * (1.5 * slope1 - 0.5 * slope0)

    def body(index, carry):
        y, newer, older = carry
        newest = field(at(index), y)
        y = y + (step / 12.0) * (23.0 * newest - 16.0 * newer + 5.0 * older)
        return y, newest, newer

    return jax.lax.fori_loop(2, n_steps, body, (y, slope1, slope0))[0]


class DiffusionPrior(AbstractPrior):
    """A population: y = shift + mixing x, with x of a diffusion and u standard normal, and phi of y.

    Args:
        diffusion: over x.
        shift: (param,) of y.
        mixing: (param, param); diagonal for models that standardise each parameter alone.
        space: the parameters.
        margins: of phi, to normal scores y; phi = y without them.
    """

    diffusion: Diffusion
    shift: Float[Array, " param"]
    mixing: Float[Array, "param param"]
    space: ParameterSpace = eqx.field(static=True)
    margins: Marginals | None = None

    def transport(self, u: Float[Array, " param"]) -> Float[Array, " param"]:
        """Latent phi of a base point."""
        return self.latent(self.diffusion.transport(u))

    def latent(self, x: Float[Array, " param"]) -> Float[Array, " param"]:
        """Latent phi of standardised x (param,)."""
        y = self.shift + self.mixing @ x
        return y if self.margins is None else self.margins.inverse(y)

    def standardised(self, phi: Float[Array, " param"]) -> tuple[Float[Array, " param"], Scalar]:
        """X (param,) of a latent phi, and the ln determinant of dx/dphi."""
        y, log_slope = (phi, 0.0) if self.margins is None else self.margins.forward(phi)
        x = jnp.linalg.solve(self.mixing, y - self.shift)
        return x, log_slope - jnp.linalg.slogdet(self.mixing)[1]

    def inverse(self, phi: Float[Array, " param"], n_steps: int = 40) -> Float[Array, " param"]:
        """Base point of a latent phi."""
        return self.diffusion.inverse(self.standardised(phi)[0], n_steps=n_steps)

    def base_log_prob(self, u: Float[Array, " param"]) -> Scalar:
        """Ln N(u; 0, I)."""
        return -0.5 * jnp.sum(u * u) - 0.5 * u.shape[0] * log(2 * pi)

    def sample_base(self, key: Array) -> Float[Array, " param"]:
        """Standard normal draw."""
        return jax.random.normal(key, self.shift.shape, self.shift.dtype)

    def log_prob(self, phi: Float[Array, " param"], n_steps: int = 40) -> Scalar:
        """Ln density of phi, by an exact trace: for audits, never in production."""
        x, log_slope = self.standardised(phi)
        return self.diffusion.log_prob(x, n_steps=n_steps) + log_slope
