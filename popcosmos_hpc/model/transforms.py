"""Between latent phi, where sampling is unbounded, and physical theta, where the model lives."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr, ndtri

from popcosmos_hpc.parameters import ParameterSpace

LATENT_LIMIT = 5.0
"""|phi| at which the inverse probit saturates: float32 has no theta closer to a bound than that."""


def probit_mask(space: ParameterSpace) -> np.ndarray:
    """Which parameters have the probit transform, (param,) bool."""
    return np.array([parameter.transform == "probit" for parameter in space.parameters])


def box(space: ParameterSpace) -> tuple[np.ndarray, np.ndarray]:
    """Lower bounds and widths of the probit parameters; 0 and 1 for the others, (param,) float32 each."""
    mask = probit_mask(space)
    lower = np.array([parameter.lower for parameter in space.parameters])
    upper = np.array([parameter.upper for parameter in space.parameters])
    width = np.where(mask, np.subtract(upper, lower, where=mask, out=np.ones_like(lower)), 1.0)
    return np.where(mask, lower, 0.0).astype(np.float32), width.astype(np.float32)


def to_physical(space: ParameterSpace, phi: Array) -> Array:
    """Physical parameters: theta = lower + (upper - lower) Phi(phi), or phi itself.

    Args:
        space: the parameters.
        phi: (*batch, param) latent values; very large ones saturate at the bounds.
    """
    lower, width = (jnp.broadcast_to(side, phi.shape) for side in box(space))
    mask = jnp.broadcast_to(probit_mask(space), phi.shape)
    return jnp.where(mask, lower + width * ndtr(phi), phi)


def to_latent(space: ParameterSpace, theta: Array) -> Array:
    """Latent values; inverse of `to_physical`.

    Values on or outside a bound become -+ `LATENT_LIMIT`. The nearer bound is the reference of the
    difference, so that no digits are lost at the upper one.

    Args:
        space: the parameters.
        theta: (*batch, param) physical values.
    """
    lower, width = (jnp.broadcast_to(side, theta.shape) for side in box(space))
    mask = jnp.broadcast_to(probit_mask(space), theta.shape)
    smallest = ndtr(jnp.float32(-LATENT_LIMIT))
    below = jnp.clip((theta - lower) / width, smallest, 1.0)
    above = jnp.clip((lower + width - theta) / width, smallest, 1.0)
    phi = jnp.where(below < above, ndtri(jnp.minimum(below, 0.5)), -ndtri(jnp.minimum(above, 0.5)))
    return jnp.where(mask, phi, theta)
