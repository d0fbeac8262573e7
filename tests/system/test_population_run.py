"""Runs whose prior is a population bundle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.campaign.prepare import check_run
from popcosmos_hpc.campaign.run import run_campaign
from popcosmos_hpc.errors import BundleError, LedgerError
from popcosmos_hpc.model.bundle import save_bundle
from popcosmos_hpc.model.diffusion import Diffusion, DiffusionPrior, NoiseSchedule, initial_score_network
from popcosmos_hpc.model.diffusion_bundle import prior_to_bundle
from popcosmos_hpc.survey.plan import Plan
from popcosmos_hpc.survey.posterior_store import read_posterior
from tests import toy, toy_run


def write_population(folder, scale: float = 1.0):
    """The toy's own Gaussian prior as a diffusion: a velocity of next to nothing moves nothing."""
    weights = toy.arrays()
    network = initial_score_network(jax.random.PRNGKey(0), toy.SPACE.size, width=8, depth=1)
    still = jax.tree.map(lambda leaf: 0.0 * leaf, network.weights[-1])
    network = type(network)(
        (*network.weights[:-1], still), network.biases, network.frequencies, "silu", network.time_power
    )
    prior = DiffusionPrior(
        diffusion=Diffusion(network, NoiseSchedule(), n_steps=4),
        shift=jnp.asarray(weights["mean"]),
        mixing=scale * jnp.asarray(weights["cholesky"]),
        space=toy.SPACE,
    )
    facts, arrays = prior_to_bundle(prior)
    return save_bundle(folder, {"name": "toy_population", **facts}, arrays)


def test_a_population_is_the_prior_of_a_run(tmp_path):
    """Posterior means equal those under the same prior written as a Gaussian, within their errors."""
    population = write_population(tmp_path / "population")
    model = {**toy_run.settings()["model"], "prior": str(population)}
    sampler = {"n_particles": 32, "n_pool": 1024}
    learned = toy_run.planned(tmp_path / "learned", model=model, sampler=sampler)
    written = toy_run.planned(tmp_path / "written", sampler=sampler)
    means = []
    for run in (learned, written):
        assert run_campaign(run).exit_code == 0
        partitions = Plan.read(run / "plan.parquet").partitions
        means.append(np.concatenate([read_posterior(run, p)["theta"] for p in partitions]).mean(axis=1))
    spread = np.nanstd(means[1], axis=0)
    difference = (means[0] - means[1]) / spread
    assert np.nanmean(np.abs(difference)) < 0.25


def test_another_population_is_refused(tmp_path):
    population = write_population(tmp_path / "population")
    run = toy_run.planned(tmp_path / "run", model={**toy_run.settings()["model"], "prior": str(population)})
    check_run(run)
    write_population(population, scale=1.1)
    with pytest.raises(LedgerError, match="prior"):
        check_run(run)


def test_a_missing_population_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(BundleError, match="nowhere"):
        toy_run.planned(tmp_path / "run", model={**toy_run.settings()["model"], "prior": "nowhere"})
    assert not (tmp_path / "run" / "run.yaml").exists()
