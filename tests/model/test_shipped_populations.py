"""The reference population and its student: as accurate as asked, and belonging together."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.errors import BundleError
from popcosmos_hpc.model.bundle import load_bundle, load_population, shipped_bundles
from popcosmos_hpc.model.diffusion import Diffusion, DiffusionPrior
from popcosmos_hpc.model.student_bundle import load_amplitude, load_flow
from popcosmos_hpc.model.transforms import to_physical


@pytest.fixture(scope="module")
def prior() -> DiffusionPrior:
    found = load_population("reference")
    assert isinstance(found, DiffusionPrior)
    return found


@pytest.fixture(scope="module")
def draws(prior):
    """Base points and phi, (256, param) each."""
    u = jax.vmap(prior.sample_base)(jax.random.split(jax.random.PRNGKey(1), 256))
    return u, eqx.filter_jit(lambda prior, u: jax.vmap(prior.transport)(u))(prior, u)


def test_the_reference_agrees_with_its_draws():
    accuracy = load_bundle("reference").manifest["accuracy"]
    assert accuracy["width_68"]["value"] <= 0.03
    assert accuracy["classifier_accuracy"] <= 0.52
    assert accuracy["outside"] == 0.0
    assert accuracy["correlation"]["value"] <= 0.03


def test_twelve_steps_are_close_to_the_exact_flow(prior, draws):
    fine = Diffusion(prior.diffusion.network, prior.diffusion.schedule, prior.diffusion.output, 80)
    run = eqx.filter_jit(lambda diffusion, u: jax.vmap(diffusion.transport)(u))
    error = np.asarray(run(prior.diffusion, draws[0]) - run(fine, draws[0]))
    assert prior.diffusion.n_steps == 12
    assert np.sqrt(np.mean(error**2)) < 0.007


@pytest.mark.parametrize("name", shipped_bundles("population"))
def test_draws_of_shipped_populations_are_finite_and_have_gradients(name):
    prior = load_population(name)
    assert isinstance(prior, DiffusionPrior)
    u = jnp.concatenate([3.0 * jnp.eye(prior.space.size), -7.0 * jnp.eye(prior.space.size)])
    run = eqx.filter_jit(lambda prior, u: jax.vmap(jax.jacfwd(prior.transport))(u))
    assert np.isfinite(run(prior, u)).all()


def test_the_amplitude_belongs_to_the_reference_and_follows_it(prior, draws):
    amplitude = load_amplitude("reference_amplitude", "conditional", teacher="reference")
    theta = jax.vmap(lambda phi: to_physical(prior.space, phi))(draws[1])
    run = eqx.filter_jit(lambda a, theta: jax.vmap(lambda row: a.mixture(row).cdf(row[0]))(theta))
    quantile = np.asarray(run(amplitude, theta))
    assert prior.space.names[0] == amplitude.parameter == "N"
    # Uniform: the mean has a standard error of 0.018, the standard deviation one of 0.008.
    assert abs(quantile.mean() - 0.5) < 0.07 and abs(quantile.std() - 0.2887) < 0.033
    with pytest.raises(BundleError, match="the student of reference_bright"):
        load_amplitude("reference_amplitude", "conditional", teacher="reference_bright")


def test_the_shipped_flow_proposes_for_the_reference_population():
    """Weights teacher / flow of the flow's own draws: their mean is one, their efficiency as stored.

    200 draws with an efficiency near 0.87 know it to about 0.03.
    """
    teacher, flow = load_population("reference"), load_flow("reference_flow", "proposal", teacher="reference")
    stored = {measure.name: measure.value for measure in flow.accuracy}["efficiency"]
    assert stored >= 0.85
    phi = jax.vmap(flow.sample)(jax.random.split(jax.random.PRNGKey(3), 200))
    ratio = jax.jit(jax.vmap(lambda x: teacher.log_prob(x) - flow.log_prob(x)))(phi)
    weight = np.exp(np.asarray(ratio, np.float64))
    assert weight.mean() == pytest.approx(1.0, abs=4 * weight.std() / np.sqrt(200))
    assert weight.mean() ** 2 / np.mean(weight**2) == pytest.approx(stored, abs=0.15)
