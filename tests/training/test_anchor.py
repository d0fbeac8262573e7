import jax.numpy as jnp
import numpy as np

from popcosmos_hpc.training.anchor import _from_redder


def test_differences_of_no_trust_are_those_of_the_next_redder_band():
    difference = jnp.asarray([5.0, 4.0, 0.2, 0.1])
    carried = _from_redder(difference, jnp.asarray([0.0, 0.0, 1.0, 1.0]))
    np.testing.assert_allclose(carried, [0.2, 0.2, 0.2, 0.1])


def test_differences_fade_without_a_step():
    difference = jnp.asarray([1.0, 0.2])
    values = [
        float(_from_redder(difference, jnp.asarray([trust, 1.0]))[0]) for trust in np.linspace(0, 1, 11)
    ]
    np.testing.assert_allclose(np.diff(values), 0.08, rtol=1e-4)
