import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.noise import ConstantUncertainty


def test_constant_errors_do_not_depend_on_key_or_flux():
    model = ConstantUncertainty(("g", "r"), [0.1, 0.3])
    for seed, flux in ((0, [1.0, 2.0]), (1, [-5.0, 1e6])):
        drawn = model.sample(jax.random.PRNGKey(seed), jnp.asarray(flux))
        np.testing.assert_array_equal(drawn, np.float32([0.1, 0.3]))


@pytest.mark.parametrize("errors", [[0.1], [0.1, 0.0], [0.1, np.nan], [0.1, -1.0], [0.1, np.inf]])
def test_errors_that_are_none_are_refused(errors):
    with pytest.raises(ConfigurationError, match="g, r"):
        ConstantUncertainty(("g", "r"), errors)
