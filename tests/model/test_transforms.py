import jax
import jax.numpy as jnp
import numpy as np

from popcosmos_hpc.model.transforms import LATENT_LIMIT, to_latent, to_physical
from popcosmos_hpc.parameters import POP_COSMOS


def test_round_trip_over_many_sigma():
    phi = jnp.broadcast_to(jnp.linspace(-4.5, 4.5, 91)[:, None], (91, POP_COSMOS.size))
    back = to_latent(POP_COSMOS, to_physical(POP_COSMOS, phi))
    # Far out, float32 holds few digits of the distance to a bound that is not zero.
    near = np.abs(np.asarray(phi)) < 3.0
    np.testing.assert_allclose(np.asarray(back)[near], np.asarray(phi)[near], atol=2e-3)
    np.testing.assert_allclose(back, phi, atol=0.2)


def test_saturates_at_the_bounds_without_nan():
    extremes = jnp.asarray([-jnp.inf, -1e30, -40.0, 40.0, 1e30, jnp.inf])
    theta = to_physical(POP_COSMOS, jnp.broadcast_to(extremes[:, None], (6, POP_COSMOS.size)))
    for index, parameter in enumerate(POP_COSMOS.parameters[1:], start=1):
        np.testing.assert_allclose(theta[:3, index], parameter.lower, atol=1e-6)
        np.testing.assert_allclose(theta[3:, index], parameter.upper, rtol=1e-6)
    np.testing.assert_array_equal(theta[:, 0], extremes)
    latent = to_latent(POP_COSMOS, theta)[:, 1:]
    assert np.all(np.abs(np.asarray(latent)) <= LATENT_LIMIT + 1e-3)


def test_gradient_is_finite_at_the_limits():
    gradient = jax.vmap(jax.grad(lambda phi: jnp.sum(to_physical(POP_COSMOS, phi))))
    assert np.all(np.isfinite(gradient(jnp.full((1, POP_COSMOS.size), 30.0))))
