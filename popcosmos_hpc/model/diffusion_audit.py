"""An independent, adaptive solve of a diffusion's flow, to judge the fixed steps by."""

from math import log, pi, sqrt

import diffrax
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Scalar

from popcosmos_hpc.model.diffusion import Diffusion


def converged_log_prob(
    diffusion: Diffusion, x: Float[Array, " dim"], condition: Array | None = None, tolerance: float = 1e-8
) -> Scalar:
    """Ln density of x (dim,) by an eighth-order adaptive solver.

    The trace is that of a Jacobian in reverse mode, and the variable is t itself: nothing but the network
    is shared with `Diffusion.log_prob`. Use float64 (`jax.enable_x64`) for tolerances below 1e-6.

    Args:
        diffusion: the model.
        x: standardised data.
        condition: of a conditional diffusion.
        tolerance: relative and absolute.
    """

    def slope(t, state, _):
        at, _ = state
        field = lambda y: diffusion.flow(t, y, condition)  # noqa: E731
        return field(at), jnp.trace(jax.jacrev(field)(at))

    at, change = _solve(slope, (x, jnp.zeros((), x.dtype)), diffusion.schedule.t_min, 1.0, tolerance)
    u = at / diffusion.schedule.base_scale
    normal = -0.5 * jnp.sum(u * u) - u.shape[0] * (0.5 * log(2 * pi) + log(diffusion.schedule.base_scale))
    return normal + change


def converged_transport(
    diffusion: Diffusion, u: Float[Array, " dim"], condition: Array | None = None, tolerance: float = 1e-8
) -> Float[Array, " dim"]:
    """Data x (dim,) of a base point u (dim,), by the adaptive solver; arguments as above."""

    def slope(t, state, _):
        return diffusion.flow(t, state, condition)

    start = u * diffusion.schedule.base_scale
    return _solve(slope, start, 1.0, diffusion.schedule.t_min, tolerance)


def _solve(slope, start, first: float, last: float, tolerance: float):
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(slope),
        diffrax.Dopri8(),
        t0=first,
        t1=last,
        dt0=(1.0 if last > first else -1.0) * min(first, last) * 0.1 * sqrt(first + last),
        y0=start,
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        saveat=diffrax.SaveAt(t1=True),
        max_steps=100_000,
    )
    return jax.tree.map(lambda value: value[-1], solution.ys)
