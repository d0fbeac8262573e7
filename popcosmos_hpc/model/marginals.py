"""Each dimension to a standard normal one: monotone rational-quadratic splines with straight ends.

A normalising flow has the tails of its base, and populations have longer ones (star formation histories:
15 standard deviations); a diffusion needs more steps for them. Taken to normal scores one by one first, they
fit.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Scalar
from scipy.stats import norm

_FARTHEST, _N_KNOTS = 3.5, 15
_BEYOND = 20  # draws that must lie beyond the outermost knots


class Marginals(eqx.Module):
    """Monotone maps x -> y of each dimension alone (Gregory & Delbourgo 1982, IMA J. Numer. Anal. 2, 123).

    Args:
        knots: (param, knot) of x, increasing.
        scores: (knot,) of y at the knots, increasing.
        slopes: (param, knot) dy/dx at the knots; the ends go on as straight lines of these slopes.
    """

    knots: Float[Array, "param knot"]
    scores: Float[Array, " knot"]
    slopes: Float[Array, "param knot"]

    def forward(self, x: Float[Array, " param"]) -> tuple[Float[Array, " param"], Scalar]:
        """Scores y (param,) of x (param,), and the ln determinant of dy/dx."""
        y, log_slope = jax.vmap(_forward, (0, 0, None, 0))(x, self.knots, self.scores, self.slopes)
        return y, jnp.sum(log_slope)

    def inverse(self, y: Float[Array, " param"]) -> Float[Array, " param"]:
        """X (param,) of scores (param,)."""
        return jax.vmap(_inverse, (0, 0, None, 0))(y, self.knots, self.scores, self.slopes)


def fit_marginals(x: np.ndarray) -> Marginals:
    """Maps that take the quantiles of draws to those of the normal distribution.

    Args:
        x: (draw, param); the outermost knots are at 3.5 standard deviations, or nearer, so that twenty of
            the draws lie beyond.
    """
    reach = min(_FARTHEST, float(norm.isf(min(_BEYOND / len(x), 0.25))))
    scores = np.linspace(-reach, reach, _N_KNOTS)
    knots = np.quantile(x.astype(np.float64), norm.cdf(scores), axis=0).T
    # Equal draws would make knots coincide.
    least = 1e-4 * x.std(axis=0)[:, None] * np.arange(_N_KNOTS)
    knots = np.maximum.accumulate(knots, axis=1) + least
    secants = np.diff(scores) / np.diff(knots, axis=1)
    inner = 2.0 / (1.0 / secants[:, :-1] + 1.0 / secants[:, 1:])  # harmonic means keep the map monotone
    slopes = np.concatenate([secants[:, :1], inner, secants[:, -1:]], axis=1)
    return Marginals(*(jnp.asarray(part, jnp.float32) for part in (knots, scores, slopes)))


def _forward(x, knots, scores, slopes):
    """Score of a number, and ln of the slope there."""
    inside = jnp.clip(x, knots[0], knots[-1])
    low = _interval(knots, inside)
    width, height = knots[low + 1] - knots[low], scores[low + 1] - scores[low]
    part, secant, first, last = (inside - knots[low]) / width, height / width, slopes[low], slopes[low + 1]
    mixed = part * (1.0 - part)
    bottom = secant + (first + last - 2.0 * secant) * mixed
    y = scores[low] + height * (secant * part**2 + first * mixed) / bottom
    slope = secant**2 * (last * part**2 + 2.0 * secant * mixed + first * (1.0 - part) ** 2) / bottom**2
    edge = jnp.where(x < inside, slopes[0], slopes[-1])
    return y + edge * (x - inside), jnp.log(jnp.where(x == inside, slope, edge))


def _inverse(y, knots, scores, slopes):
    """Number of a score: the root of a quadratic, in the form that does not cancel."""
    inside = jnp.clip(y, scores[0], scores[-1])
    low = _interval(scores, inside)
    width, height = knots[low + 1] - knots[low], scores[low + 1] - scores[low]
    secant, first, last = height / width, slopes[low], slopes[low + 1]
    rise = inside - scores[low]
    bend = rise * (first + last - 2.0 * secant)
    a, b, c = height * (secant - first) + bend, height * first - bend, -secant * rise
    part = 2.0 * c / (-b - jnp.sqrt(jnp.maximum(b**2 - 4.0 * a * c, 0.0)))
    edge = jnp.where(y < inside, slopes[0], slopes[-1])
    return knots[low] + width * part + (y - inside) / edge


def _interval(edges, at):
    """Index of the interval between edges that holds a number."""
    # Comparing with all of so few edges vectorises, unlike a search.
    index = jnp.searchsorted(edges, at, side="right", method="compare_all")
    return jnp.clip(index - 1, 0, edges.shape[0] - 2)
