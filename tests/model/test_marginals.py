"""Normal scores of each dimension: exact inverse, exact slope, and what they are fitted for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from popcosmos_hpc.model.marginals import fit_marginals


@pytest.fixture(scope="module")
def draws():
    """Long tails on one side, a normal, and a bounded one."""
    rng = np.random.default_rng(1)
    columns = [-rng.exponential(2.0, 50_000), 3 + 0.1 * rng.standard_normal(50_000), rng.random(50_000)]
    return np.stack(columns, axis=1)


def test_draws_become_normal_each(draws):
    y, _ = jax.vmap(fit_marginals(draws[::2]).forward)(jnp.asarray(draws[1::2], jnp.float32))
    for column in np.asarray(y).T:
        # Largest difference of distribution functions: 1.63 sqrt(2 / n) at 1 %, and 0.003 for the spline.
        assert stats.kstest(column, "norm").statistic < 1.63 * np.sqrt(2 / 25_000) + 0.003
        assert abs(stats.kurtosis(column)) < 0.2 and np.abs(column).max() < 7


def test_the_inverse_and_the_slope_are_exact(draws):
    marginals = fit_marginals(draws)
    y = jnp.asarray(np.random.default_rng(2).uniform(-6, 6, (3000, 3)), jnp.float32)  # also beyond the knots
    x = jax.vmap(marginals.inverse)(y)
    back, log_slope = jax.vmap(marginals.forward)(x)
    np.testing.assert_allclose(back, y, atol=2e-3)
    slope = jax.vmap(jax.jacfwd(lambda v: marginals.forward(v)[0]))(x)
    np.testing.assert_allclose(jnp.linalg.slogdet(slope)[1], log_slope, atol=1e-4)
    assert np.all(np.diff(np.asarray(jax.vmap(marginals.inverse)(jnp.sort(y, axis=0))), axis=0) >= 0)


def test_equal_draws_do_not_make_knots_coincide():
    x = np.concatenate([np.zeros((5000, 1)), np.random.default_rng(3).standard_normal((5000, 1))])
    marginals = fit_marginals(x)
    assert np.all(np.diff(marginals.knots) > 0) and np.all(np.isfinite(marginals.slopes))


def test_few_draws_set_no_knots_beyond_themselves():
    x = np.random.default_rng(4).standard_normal((400, 1))
    marginals = fit_marginals(x)
    outside = np.sum((x < marginals.knots[0, 0]) | (x > marginals.knots[0, -1]))
    assert 20 <= outside <= 80 and np.all(np.asarray(marginals.slopes) < 5)
