r"""Distances between a weighted mock sample and a data sample, differentiable in the mock.

Both are optimal-transport distances: unlike a likelihood they need no density of photometry, and unlike
moments they see all of a distribution (Alsing et al. 2024, arXiv:2402.00935, section 3).
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Scalar
from ott.geometry import pointcloud
from ott.tools.sinkhorn_divergence import sinkhorn_divergence


def sinkhorn_distance(
    mock: Float[Array, "mock feature"],
    weight: Float[Array, " mock"],
    data: Float[Array, "data feature"],
    epsilon: float = 0.05,
) -> Scalar:
    """Sinkhorn divergence with squared Euclidean cost (Feydy et al. 2019, arXiv:1810.08278, eq. 3).

    Its self-distances remove the shrinkage that entropy alone would cause.

    Args:
        mock: features of mock galaxies.
        weight: of the mock galaxies; any positive sum.
        data: features of data galaxies, all of equal weight.
        epsilon: entropic regularisation, in units of the mean cost between data galaxies.
    """
    scale = jax.lax.stop_gradient(2.0 * jnp.sum(jnp.var(data, axis=0)))
    with jax.numpy_rank_promotion("allow"):  # the library broadcasts ranks on purpose
        divergence, _ = sinkhorn_divergence(
            pointcloud.PointCloud,
            mock,
            data,
            a=weight / jnp.sum(weight),
            epsilon=epsilon * scale,
            share_epsilon=True,
            solve_kwargs={"threshold": 1e-3, "max_iterations": 300},
        )
    return divergence


def sliced_distance(
    mock: Float[Array, "mock feature"],
    weight: Float[Array, " mock"],
    data: Float[Array, "data feature"],
    directions: Float[Array, "direction feature"],
) -> Scalar:
    """Mean squared one-dimensional Wasserstein-2 distance over directions (Bonneel et al. 2015).

    In one dimension optimal transport is sorting, so the cost is n log n, and the noise of a finite sample
    falls like 1 / n whatever the number of features.

    Args:
        mock: features of mock galaxies.
        weight: of the mock galaxies; any positive sum.
        data: features of data galaxies, all of equal weight.
        directions: unit vectors.
    """
    share = weight / jnp.sum(weight)

    def one(direction: Array) -> Array:
        projected = mock @ direction
        order = jnp.argsort(projected)
        sorted_share = share[order]
        level = jnp.cumsum(sorted_share) - 0.5 * sorted_share
        target = jnp.sort(data @ direction)
        known = (jnp.arange(data.shape[0]) + 0.5) / data.shape[0]
        return jnp.sum(sorted_share * (projected[order] - jnp.interp(level, known, target)) ** 2)

    return jnp.mean(jax.vmap(one)(directions))


def random_directions(key: Array, count: int, size: int) -> Float[Array, "direction feature"]:
    """Unit vectors: every axis, then `count` - `size` random ones."""
    free = jax.random.normal(key, (max(count - size, 0), size))
    return jnp.concatenate([jnp.eye(size), free / jnp.linalg.norm(free, axis=1, keepdims=True)])
