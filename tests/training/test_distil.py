"""Distilling the published networks into one, at tiny size."""

import logging
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.bundle import load_bundle
from popcosmos_hpc.model.photulator import SharedPhotometry
from popcosmos_hpc.training.distil import DistilRecipe, Draws, distil, faint_limited, load_distil_recipe
from popcosmos_hpc.training.published import read_emulator
from popcosmos_hpc.training.published_import import import_release
from tests.published_models import write_release

RECIPE = DistilRecipe(
    name="tiny", width=24, depth=2, n_rounds=24, batch_size=128, learning_rate=1e-2, average=0.9,
    n_draws=4096, n_groups=4, n_test=2048, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release"), seed=5)


@pytest.fixture(scope="module")
def emulator(root):
    return read_emulator(root)


def test_the_shipped_recipe_is_valid(repository):
    recipe = load_distil_recipe(repository / "configs" / "training" / "pop_cosmos_distil.yaml")
    assert recipe.n_test >= 10_000
    with pytest.raises(ConfigurationError, match="no file"):
        load_distil_recipe(repository / "none.yaml")


def test_an_unknown_entry_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("name: a\nwdith: 3\n")
    with pytest.raises(ConfigurationError, match="wdith"):
        load_distil_recipe(tmp_path / "a.yaml")


def test_faint_magnitudes_end_at_the_limit():
    limited = np.asarray(faint_limited(jnp.asarray([5.0, 18.0, 20.0, 80.0])))
    np.testing.assert_allclose(limited, [5.0, 17.84, 20 - 2.5 * np.log10(2), 20.0], atol=2e-3)


def test_draws_of_a_round_depend_on_the_round_alone(emulator):
    """So a resumed training sees what it would have seen; and one group of four is new each round."""
    recipe = RECIPE.model_copy(update={"n_draws": 400})
    running, resumed = Draws(emulator, recipe), Draws(emulator, recipe)
    rounds = [running.round(index) for index in range(7)]
    for ours, theirs in zip(resumed.round(6), rounds[6], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for before, after in pairwise(rounds):
        old = (before[0] == after[0]).all(1).reshape(4, -1).all(1)
        assert old.sum() == 3
    values = rounds[0][1]
    assert values.shape == (400, 3) and np.isfinite(values).all() and values.max() <= 20.001
    theta = running.parameters(4, 2048)[:100]  # the group that round 0 draws is stream 4 of the first group
    magnitudes = jax.vmap(lambda t: emulator.photometry(emulator.space, t))(jnp.asarray(theta))
    np.testing.assert_allclose(values[:100], faint_limited(magnitudes), rtol=1e-4, atol=1e-3)


def test_distilling_learns_and_is_remembered(root, emulator, tmp_path, caplog):
    out = tmp_path / "out"
    imported = import_release(root, out, RECIPE, tmp_path / "states")
    assert imported.bundles[-1].name == "tiny" and (out / "tiny" / "accuracy.png").is_file()
    bundle = load_bundle(out / "tiny")
    table = bundle.manifest["accuracy"]
    assert table["n_test"] == 2048 and bundle.manifest["likelihood"]["zero_points"]["hsc_i"] == 1.0
    student = bundle.emulator()
    assert isinstance(student.photometry, SharedPhotometry) and student.lines.names == emulator.lines.names
    # Against a network that gives the mean magnitude: at least four times better, here about ten.
    theta = Draws(emulator, RECIPE).parameters(99, 2048)
    theta[:, 0] = 20.0
    run = jax.jit(jax.vmap(lambda t: (emulator(t), student(t))))
    flux, fast = (np.asarray(values) for values in run(jnp.asarray(theta)))
    bright = (flux > 1e-5) & np.isfinite(flux)  # brighter than 15 for N = 0, as in the table
    error = 2.5 * np.abs(np.log10(fast[bright] / flux[bright]))
    exact = -2.5 * np.log10(np.where(bright, flux, np.nan))
    spread = np.abs(exact - np.nanmedian(exact, axis=0))[bright]
    assert np.median(error) < 0.25 * np.median(spread)
    # The table's median, from other draws: both are of some 6000 numbers, so they agree to a few per cent.
    assert np.median(error) == pytest.approx(table["overall"]["median"], rel=0.15)
    assert np.asarray(student.sigma(jnp.asarray(2.0))).min() > 0
    with caplog.at_level(logging.INFO):
        again, _ = distil(emulator, RECIPE, tmp_path / "states")
    assert "resumes at round 24 of 24" in caplog.text
    np.testing.assert_array_equal(again.photometry.network.weight[0], student.photometry.network.weight[0])
