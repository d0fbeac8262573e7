"""From a catalog and a recipe to a population bundle, on the toy world."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from popcosmos_hpc.cli import main
from popcosmos_hpc.errors import ConfigurationError, TrainingError
from popcosmos_hpc.model.bundle import load_bundle, load_population, save_bundle
from popcosmos_hpc.model.diffusion import Diffusion, DiffusionPrior, NoiseSchedule, initial_score_network
from popcosmos_hpc.model.diffusion_bundle import prior_to_bundle
from popcosmos_hpc.model.noise_table import TabulatedUncertainty
from popcosmos_hpc.training.population_recipe import load_population_recipe, read_photometry
from tests import toy, toy_run

BAND = toy.BANDS[0]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A diffusion that leaves the toy's Gaussian prior as it is."""
    weights = toy.arrays()
    size = toy.SPACE.size
    network = initial_score_network(jax.random.PRNGKey(0), size, width=16, depth=1)
    prior = DiffusionPrior(
        diffusion=Diffusion(network, NoiseSchedule(), n_steps=4),
        shift=jnp.asarray(weights["mean"]) + 0.5,
        mixing=jnp.asarray(weights["cholesky"]),
        space=toy.SPACE,
    )
    facts, arrays = prior_to_bundle(prior)
    return save_bundle(tmp_path_factory.mktemp("start") / "start", {"name": "start", **facts}, arrays)


def settings(first, **changes) -> dict:
    base = {
        "name": "toy_population",
        "start": str(first),
        "bundle": str(toy_run.bundle()),
        "survey": str(toy_run.preset()),
        "input": str(toy_run.catalog(1200)),
        "bands": list(toy.BANDS),
        "likelihood": {"family": "gaussian", "error_floor": 0.0},
        "schedule": {
            "n_mock": 128, "n_data": 128, "n_directions": 8, "steps_per_round": 5, "n_rounds": 4, "seed": 1,
        },
    }  # fmt: skip
    return {**base, **changes}


def recipe(path, first, **changes):
    path.write_text(yaml.safe_dump(settings(first, **changes)))
    return path


def test_the_verb_writes_a_bundle_that_runs_can_use(tmp_path, start):
    config = recipe(tmp_path / "toy_population.yaml", start)
    result = CliRunner().invoke(main, ["train", "population", str(config), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    manifest = load_bundle(tmp_path / "out", "population").manifest
    accuracy = manifest["accuracy"]
    assert accuracy["held_out_distance_end"] <= accuracy["held_out_distance_start"]
    assert set(manifest["zero_points"]) == set(toy.BANDS)
    counts = manifest["training_photometry"]
    assert counts["rows"] == sum(counts[k] for k in ("not_selected", "incomplete", "too_faint", "galaxies"))
    prior = load_bundle(toy_run.bundle()).prior(str(tmp_path / "out"))
    assert np.all(np.isfinite(prior.transport(jnp.zeros(toy.SPACE.size))))
    again = CliRunner().invoke(main, ["train", "population", str(config), "--out", str(tmp_path / "out2"),
                                      "--checkpoint-dir", str(tmp_path / "out.checkpoints")])  # fmt: skip
    assert again.exit_code == 0  # finished states are taken as they are
    one, other = (load_population(tmp_path / name) for name in ("out", "out2"))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["kind"] == "population"


def test_incomplete_and_faint_galaxies_are_counted(tmp_path, start):
    base = load_population_recipe(recipe(tmp_path / "a.yaml", start))
    flux, flux_err, counts = read_photometry(base)
    assert counts["incomplete"] > 0 and len(flux) == counts["galaxies"] == len(flux_err)
    cut = 22.5 - 2.5 * np.log10(np.median(flux[:, 0]))
    cut_flux, _, cut_counts = read_photometry(base.model_copy(update={"limits": {BAND: float(cut)}}))
    assert abs(cut_counts["too_faint"] - counts["galaxies"] / 2) <= 1
    assert cut_flux[:, 0].min() >= np.median(flux[:, 0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"limits": {BAND: -40.0}}, TrainingError, "too_faint"),
        ({"bands": [*toy.BANDS, "Q"]}, ConfigurationError, "Q"),
        ({"likelihood": {"error_floor": {"Q": 0.1}}}, ConfigurationError, "Q"),
        ({"uncertainty": "nowhere"}, Exception, "nowhere"),
        ({"start": "kids9"}, Exception, "kind population"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(tmp_path, start, changes, error, message):
    from popcosmos_hpc.training.population_recipe import train_population_bundle

    loaded = load_population_recipe(recipe(tmp_path / "a.yaml", start, **changes))
    with pytest.raises(error, match=message):
        train_population_bundle(loaded, tmp_path / "out")


def test_unknown_settings_are_refused(tmp_path, start):
    with pytest.raises(ConfigurationError, match="lmits"):
        load_population_recipe(recipe(tmp_path / "a.yaml", start, lmits={}))
    with pytest.raises(ConfigurationError, match="no file"):
        load_population_recipe(tmp_path / "none.yaml")


def test_errors_of_the_table_are_those_of_like_galaxies():
    flux = np.stack([np.arange(1.0, 1001.0), np.ones(1000)], axis=1)
    errors = np.stack([0.1 * flux[:, 0], 5.0 + 0.01 * flux[:, 0]], axis=1)
    model = TabulatedUncertainty(("r", "i"), flux, errors, "r", neighbours=5)
    keys = jax.random.split(jax.random.PRNGKey(0), 50)
    drawn = np.asarray(jax.vmap(lambda k: model.sample(k, jnp.asarray([300.0, 9.0])))(keys))
    assert np.all(np.abs(drawn[:, 0] - 30.0) <= 0.6)
    np.testing.assert_allclose(drawn[:, 1], 5.0 + 0.1 * drawn[:, 0], rtol=1e-5)  # of the same galaxy
    assert len(np.unique(drawn[:, 0])) > 5
    np.testing.assert_allclose(model.sample(keys[0], jnp.asarray([1e9, 0.0]))[0], 100.0, atol=1.0)
    with pytest.raises(ConfigurationError, match="one of the bands"):
        TabulatedUncertainty(("r", "i"), flux, errors, "K")
