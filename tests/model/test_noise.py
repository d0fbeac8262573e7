"""Uncertainty models: what they draw, how they are stored, and the shipped ones."""

import json
from itertools import pairwise
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.errors import BundleError, ConfigurationError
from popcosmos_hpc.model.bundle import load_bundle, load_uncertainty, save_bundle, shipped_bundles
from popcosmos_hpc.model.diffusion import Diffusion, NoiseSchedule, ScoreNetwork, initial_score_network
from popcosmos_hpc.model.noise import (
    LN_NANOMAGGIES,
    ConstantUncertainty,
    DiffusionUncertainty,
    asinh_magnitude,
)
from popcosmos_hpc.model.noise_bundle import uncertainty_from_bundle, uncertainty_to_bundle

BANDS = ("g", "r", "i")
SHIFT, SCALE = np.float32([-24.0, -23.0, -22.0]), np.float32([0.1, 0.2, 0.3])
SHIPPED = ("noise_kids", "noise_lsst10", "noise_zcosmos")


def standardised(network, output="score", bands=BANDS, **changes):
    """The published form around a network; magnitudes of mean 22 and deviation 2 in every band."""
    n = len(bands)
    facts = {
        "shift": np.resize(SHIFT, n), "scale": np.resize(SCALE, n), "softening": np.full(n, 1e-3),
        "condition_shift": np.full(n, 22.0), "condition_scale": np.full(n, 2.0),
    }  # fmt: skip
    diffusion = Diffusion(network, NoiseSchedule("vp"), output, 40)
    return DiffusionUncertainty.standardised(bands, diffusion, **(facts | changes))


def following(t, x, condition):
    """The exact score if x is normal about the condition."""
    alpha, _ = NoiseSchedule("vp").scales(t)
    return -(x - alpha * condition)


_sample = eqx.filter_jit(lambda model, keys, flux: jax.vmap(lambda key: model.sample(key, flux))(keys))


def draws(model, flux, count, seed=0):
    """As many draws at one galaxy's fluxes; always of the same shapes, so that a model compiles once."""
    keys = jax.random.split(jax.random.PRNGKey(seed), 64 if count <= 64 else 2000)
    return np.asarray(_sample(model, keys, jnp.asarray(flux, jnp.float32)))[:count]


def of_magnitude(magnitude):
    return np.float32(10 ** (0.4 * (22.5 - np.asarray(magnitude))))


def test_constant_errors_do_not_depend_on_key_or_flux():
    model = ConstantUncertainty(("g", "r"), [0.1, 0.3])
    for seed, flux in ((0, [1.0, 2.0]), (1, [-5.0, 1e6])):
        drawn = model.sample(jax.random.PRNGKey(seed), jnp.asarray(flux))
        np.testing.assert_array_equal(drawn, np.float32([0.1, 0.3]))
    assert model.select(("r",)).sample(jax.random.PRNGKey(0), jnp.ones(1)) == np.float32(0.3)


@pytest.mark.parametrize("errors", [[0.1], [0.1, 0.0], [0.1, np.nan], [0.1, -1.0], [0.1, np.inf]])
def test_errors_that_are_none_are_refused(errors):
    with pytest.raises(ConfigurationError, match="g, r"):
        ConstantUncertainty(("g", "r"), errors)


def test_asinh_magnitudes_are_magnitudes_of_bright_fluxes_and_exist_for_negative_ones():
    flux = jnp.asarray(of_magnitude([15.0, 20.0, 24.0]))
    np.testing.assert_allclose(asinh_magnitude(flux, jnp.full(3, 1e-3)), [15.0, 20.0, 24.0], atol=2e-4)
    softening = jnp.full(3, 0.5)
    faint = asinh_magnitude(jnp.asarray([1.0, 0.0, -1.0]), softening)
    assert np.all(np.diff(faint) > 0)
    # At no flux: -2.5 log10(softening in maggies), and odd about it.
    np.testing.assert_allclose(faint[1], 22.5 - 2.5 * np.log10(0.5), atol=1e-5)
    np.testing.assert_allclose(faint[0] + faint[2], 2 * faint[1], atol=1e-5)


def test_the_published_form_draws_ln_errors_about_the_magnitudes():
    model = standardised(following)
    ln_error = np.log(draws(model, of_magnitude([22.0, 24.0, 21.0]), 2000)) - LN_NANOMAGGIES
    x = (ln_error - SHIFT) / SCALE
    # Means 0, 1, -1/2 and unit widths, of which 2000 draws have errors of 0.022 and 0.016; the rest is t_min.
    np.testing.assert_allclose(x.mean(axis=0), [0.0, 1.0, -0.5], atol=0.09)
    np.testing.assert_allclose(x.std(axis=0), 1.0, atol=0.07)


def test_draws_depend_on_the_key_alone_and_stay_within_the_clip():
    model = standardised(following)
    flux = of_magnitude([22.0, 22.0, 22.0])
    np.testing.assert_array_equal(draws(model, flux, 8, seed=3), draws(model, flux, 8, seed=3))
    assert not np.any(draws(model, flux, 8, seed=3) == draws(model, flux, 8, seed=4))
    narrow = standardised(following, clip=(-23.1, -22.9))
    ln_error = np.log(draws(narrow, flux, 64)) - LN_NANOMAGGIES
    assert np.all((ln_error > -23.1001) & (ln_error < -22.8999)) and ln_error.std() > 0.01


def test_fluxes_outside_the_learned_range_are_held_to_it():
    model = standardised(following)
    low, high = np.full(3, 20.0), np.full(3, 24.0)
    held = eqx.tree_at(lambda m: m.condition_range, model, jnp.asarray(np.stack([low, high]), jnp.float32))
    for outside, edge in ((15.0, 20.0), (29.0, 24.0)):
        np.testing.assert_allclose(
            draws(held, of_magnitude([outside] * 3), 5), draws(model, of_magnitude([edge] * 3), 5), rtol=2e-3
        )


def test_the_network_of_pop_cosmos_fits_in(tmp_path):
    """26 bands, tanh, time embedded by random frequencies of t itself, a bare score as output."""
    rng = np.random.default_rng(0)
    sizes = (60, 256, 256, 256, 256, 256, 26)
    weights = [rng.normal(0, 1 / np.sqrt(a), (a, b)) for a, b in pairwise(sizes)]
    network = ScoreNetwork(
        tuple(jnp.asarray(w, jnp.float32) for w in weights),
        tuple(jnp.zeros(n) for n in sizes[1:]),
        jnp.asarray([-23.7, 17.0, 6.87, 4.53]),
        "tanh",
        1.0,
    )
    bands = tuple(f"band{index}" for index in range(26))
    model = standardised(network, bands=bands)
    facts, arrays = uncertainty_to_bundle(model)
    save_bundle(tmp_path / "published", {"name": "published", **facts}, arrays)
    loaded = load_uncertainty(tmp_path / "published")
    flux = of_magnitude(np.linspace(20, 26, 26))
    drawn = draws(model, flux, 3)
    np.testing.assert_array_equal(draws(loaded, flux, 3), drawn)
    ln_error = np.log(drawn) - LN_NANOMAGGIES
    assert np.all((ln_error > -28.001) & (ln_error < -19.499))


def test_bands_of_a_joint_model_are_reordered_or_dropped_but_never_made_up():
    model = standardised(following)
    flux = of_magnitude([22.0, 24.0, 21.0])
    whole = draws(model, flux, 4)
    np.testing.assert_array_equal(
        draws(model.select(("i", "g", "r")), flux[[2, 0, 1]], 4), whole[:, [2, 0, 1]]
    )
    some = model.select(("i",), given=("i", "g", "r"))
    np.testing.assert_array_equal(draws(some, flux[[2, 0, 1]], 4), whole[:, [2]])
    assert some.bands == ("i",)
    with pytest.raises(BundleError, match="none in r, i"):
        model.select(("g",))
    with pytest.raises(BundleError, match="none in g"):
        model.select(("r",), given=("r", "i"))
    with pytest.raises(BundleError, match="K"):
        model.select(("g", "r", "i", "K"))


def small():
    return standardised(initial_score_network(jax.random.PRNGKey(1), 3, 3, 8, 1), "velocity")


@pytest.mark.parametrize("model", [small(), ConstantUncertainty(BANDS, [0.1, 0.2, 0.3])])
def test_a_stored_model_is_the_same(model, tmp_path):
    facts, arrays = uncertainty_to_bundle(model)
    path = save_bundle(tmp_path / "noise", {"name": "noise", **facts}, arrays)
    loaded = load_uncertainty(path)
    assert type(loaded) is type(model) and loaded.bands == BANDS
    flux = of_magnitude([20.0, 21.0, 22.0])
    np.testing.assert_array_equal(draws(loaded, flux, 4), draws(model, flux, 4))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda facts, arrays: facts.pop("form"), "form constant or diffusion"),
        (lambda facts, arrays: facts.pop("clip"), "clip"),
        (lambda facts, arrays: arrays.pop("uncertainty.softening"), "softening"),
        (lambda facts, arrays: arrays.pop("diffusion.weight.0"), "diffusion.weight.0"),
        (lambda facts, arrays: facts.update(bands=["g"]), "bands"),
    ],
)
def test_damaged_entries_are_refused(spoil, message):
    facts, arrays = uncertainty_to_bundle(small())
    spoil(facts, arrays)
    with pytest.raises(BundleError, match=message):
        uncertainty_from_bundle(facts, arrays, "here")


def test_other_models_are_not_stored_and_other_bundles_not_loaded():
    with pytest.raises(BundleError, match="SelectedUncertainty"):
        uncertainty_to_bundle(small().select(("r", "g", "i")))
    with pytest.raises(BundleError, match="kind uncertainty"):
        load_uncertainty("kids9")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_say_where_they_come_from(name):
    assert name in shipped_bundles("uncertainty")
    bundle = load_bundle(name, "uncertainty")
    assert sum(path.stat().st_size for path in Path(bundle.path).iterdir()) < 300_000
    assert {"training_rows", "recipe", "citations", "accuracy", "depth", "quantiles"} <= set(bundle.manifest)
    assert "/" not in json.dumps(bundle.manifest["recipe"]["source"].get("path", ""))
    accuracy = bundle.manifest["accuracy"]
    assert accuracy["median"]["value"] < 0.1 and accuracy["classifier_accuracy"] < 0.6


def typical_flux(bundle, rank):
    """Fluxes of a galaxy that is in the same one of the eight bins of magnitude in every band."""
    model = load_uncertainty(bundle.path)
    magnitude = np.array([bundle.manifest["quantiles"][band][rank]["magnitude"] for band in bundle.bands])
    softening = np.asarray(model.softening, np.float64)
    return 2 * softening * np.sinh(np.log(10) * (22.5 - magnitude) / 2.5 - np.log(softening))


@pytest.mark.parametrize("name", ["noise_kids", "noise_lsst10"])
def test_shipped_models_have_the_depths_that_they_state(name):
    """Of galaxies at the depth in all bands at once: colours that the training rows hold.

    The rows of zCOSMOS, up to three magnitudes brighter than its images go, hold none.
    """
    bundle = load_bundle(name)
    depth = np.array([bundle.manifest["depth"][band] for band in bundle.bands])
    errors = draws(load_uncertainty(name), of_magnitude(depth), 2000)
    found = 22.5 - 2.5 * np.log10(5 * np.median(errors, axis=0))
    np.testing.assert_allclose(found, depth, atol=0.2)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_shipped_models_follow_the_errors_of_their_rows(name, rank):
    bundle = load_bundle(name)
    expected = [bundle.manifest["quantiles"][band][rank]["ln_error"] for band in bundle.bands]
    drawn = np.log(draws(load_uncertainty(name), typical_flux(bundle, rank), 2000))
    # 0.2 mag; a bin's median error is that of galaxies of many colours, hence of other sizes.
    np.testing.assert_allclose(np.median(drawn, axis=0), expected, atol=0.2 * np.log(10) / 2.5)


@pytest.mark.parametrize(
    ("name", "published", "shallower"),
    [
        # In 2 arcsec: the Gaussian apertures are about as wide, or a little narrower.
        ("noise_kids", [24.23, 25.12, 25.02, 23.68, 23.1, 22.3, 22.1, 21.5, 21.2], (-0.2, 0.35)),
        # Of point sources: galaxies can only be shallower.
        ("noise_lsst10", [26.1, 27.4, 27.5, 26.8, 26.1, 24.9], (-0.05, 0.5)),
    ],
)
def test_shipped_depths_are_the_published_ones_but_for_the_sizes_of_galaxies(name, published, shallower):
    depth = np.array(list(load_bundle(name).manifest["depth"].values()))
    lost = np.array(published) - depth
    assert np.all((lost > shallower[0]) & (lost < shallower[1])), lost


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_draw_sane_errors_at_any_flux(name):
    model = load_uncertainty(name)
    n = len(model.bands)
    medians = []
    for flux in (np.zeros(n), np.full(n, -1.0), *(of_magnitude([m] * n) for m in (28.0, 22.0, 18.0, 12.0))):
        drawn = draws(model, flux, 2000)
        assert np.all(np.isfinite(drawn) & (drawn > 0))
        medians.append(np.median(drawn, axis=0))
    dark, _, faint, _, bright, _ = medians
    assert np.all(bright > faint * 0.9)  # photons of the source only ever add
    assert np.all(dark < 3 * faint)
    drawn = draws(model, of_magnitude([18.0] * n), 2000)
    assert np.all(np.percentile(drawn / of_magnitude(18.0), 99, axis=0) < 0.2)
