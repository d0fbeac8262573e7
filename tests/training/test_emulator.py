import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from popcosmos_hpc.errors import BundleError, ConfigurationError
from popcosmos_hpc.model.bundle import load_bundle
from popcosmos_hpc.parameters import pop_cosmos
from popcosmos_hpc.sps.filters import load_filter
from popcosmos_hpc.sps.spectrum import build_photometer, build_sps, photometry
from popcosmos_hpc.training import simulation
from popcosmos_hpc.training.emulator import train_from_config, train_together
from popcosmos_hpc.training.recipe import load_recipe, united
from popcosmos_hpc.training.reference import build_line_table, build_reference
from popcosmos_hpc.training.simulation import Source, build_simulator, draw_parameters, target_flux
from tests.synthetic import synthetic_grids

RECIPE = {
    "name": "tiny",
    "bands": {"g": "tophat:4800:1000", "r": "tophat:6500:1200", "z": "tophat:9000:1500"},
    "rest_bands": {"U": "tophat:3600:600", "V": "tophat:5500:900"},
    "redshift": [0.0, 1.0],
    "width_lines": {"Halpha": "Ha", "OIII": "OIII5007"},
    "continuum": {"width": 32, "depth": 2, "n_rounds": 12},
    "lines": {"width": 16, "depth": 2, "n_rounds": 6},
    "rest": {"width": 16, "depth": 2, "n_rounds": 6},
    "n_reservoir": 12800,
    "n_fresh": 1280,
    "n_test": 1280,
    "batch_size": 256,
}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def simulator(recipe_file):
    patch = pytest.MonkeyPatch()
    patch.setattr(simulation, "_load_grids", lambda recipe, wave, torus: synthetic_grids(wave[0], wave[-1]))
    yield build_simulator(load_recipe(recipe_file))
    patch.undo()


@pytest.fixture(scope="module")
def pair(simulator, tmp_path_factory):
    """Two bundles with references, learned from the same draws."""
    folder = tmp_path_factory.mktemp("pair")
    common = {**RECIPE, "reference_parts": 2, "continuum": {"width": 32, "depth": 2, "n_rounds": 6}}
    recipes = {
        "three": {**common, "name": "three"},
        "two": {**common, "name": "two", "bands": {"near": RECIPE["bands"]["z"], "blue": "tophat:3900:600"}},
    }
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    patch = pytest.MonkeyPatch()
    patch.setattr(simulation, "_load_grids", lambda recipe, wave, torus: synthetic_grids(wave[0], wave[-1]))
    outs = train_together(
        [folder / f"{name}.yaml" for name in recipes], [folder / n for n in recipes], folder
    )
    patch.undo()
    return {out.name: load_bundle(out) for out in outs}


@pytest.fixture(scope="module")
def bundle(simulator, recipe_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    train_from_config(recipe_file, out, out.parent / "checkpoints")
    return load_bundle(out)


def over(function):
    """The function of one galaxy, compiled for many."""
    return eqx.filter_jit(jax.vmap(function))


def test_draws_fill_the_box(simulator):
    space = simulator.sps.space
    theta = draw_parameters(np.random.default_rng(0), space, 20000, 0.0, 1.0)
    for index, parameter in enumerate(space.parameters):
        if parameter.name != "N":
            assert theta[:, index].min() >= parameter.lower and theta[:, index].max() <= parameter.upper
    root = np.sqrt(theta[:, space.index("dust2")])
    assert abs(root.mean() - 1.0) < 4 * (2 / np.sqrt(12)) / np.sqrt(20000)


def test_source_is_reproducible_and_refreshes(simulator):
    first, second = Source(simulator, 3), Source(simulator, 3)
    start = first.round(0).theta.copy()
    assert np.array_equal(start, second.round(0).theta)
    later = first.round(1).theta
    assert 0 < np.mean(np.any(later != start, axis=1)) < 0.2


def test_emulator_learns_what_the_synthesis_says(simulator, bundle):
    emulator = bundle.emulator()
    theta = jnp.asarray(draw_parameters(np.random.default_rng(9), simulator.sps.space, 512, 0.0, 1.0))
    exact = over(lambda t: target_flux(simulator, t))(theta)
    error = 2.5 * np.log10(np.asarray(over(lambda t: emulator(t))(theta) / exact))
    # A net this small learns to a few per cent; the table in the bundle must say the same.
    assert np.median(np.abs(error)) < 0.1
    stored = bundle.manifest["accuracy"]["overall"]["median"]
    assert 0.5 < np.median(np.abs(error)) / stored < 2.0
    sigma = emulator.sigma(jnp.asarray(0.5))
    assert sigma.shape == (3,) and np.all((sigma > 0) & (sigma < 0.5))


def test_tabulated_lines_are_those_of_the_synthesis(simulator):
    strong = np.flatnonzero(simulator.strong)
    table, sps = build_line_table(simulator.sps, strong), simulator.sps
    theta = jnp.asarray(draw_parameters(np.random.default_rng(5), sps.space, 512, 0.0, 1.0))
    exact = np.asarray(over(sps.lines_behind_clouds)(theta))[:, strong]
    ours = over(lambda t: table(sps.space, sps.cosmology, t))(theta)
    np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-12)


def test_reference_is_the_synthesis_without_dust_and_gas(simulator):
    """All that the tables hold is exact but for interpolation; what they lack is left to the network."""
    sps = simulator.sps
    quiet = {"dust2": 0.0, "logsfr_ratio1": -4.0}  # no star forms: gas does not shine
    theta = draw_parameters(np.random.default_rng(6), sps.space, 512, 0.0, 1.0)
    for name, value in quiet.items():
        theta[:, sps.space.index(name)] = value
    reference = build_reference(sps, simulator.filters, 1.0, 2)
    magnitudes = over(lambda t: reference(sps.space, sps.cosmology, t))(jnp.asarray(theta))
    exact = over(lambda t: target_flux(simulator, t))(jnp.asarray(theta))
    error = np.abs(magnitudes - (22.5 - 2.5 * np.log10(exact)))
    assert np.percentile(error, 99) < 0.003


def test_reference_holds_the_emission_of_dust():
    """In the far infrared all light is absorbed starlight, lines included: the balance of energy is kept."""
    sps = build_sps(synthetic_grids(600.0, 3.0e6, torus=False), pop_cosmos(1.0), False, 1.0)
    filters = (load_filter("far", "tophat:900000:300000"),)
    photometer = build_photometer(sps, list(filters), 1.0)
    theta = jnp.asarray(draw_parameters(np.random.default_rng(8), sps.space, 512, 0.0, 1.0))
    theta = theta[theta[:, sps.space.index("dust2")] > 0.05]
    reference = build_reference(sps, filters, 1.0, 1)
    magnitudes = over(lambda t: reference(sps.space, sps.cosmology, t))(theta)
    error = magnitudes - (22.5 - 2.5 * np.log10(over(lambda t: photometry(sps, photometer, t))(theta)))
    # Twelve wavelengths stand for the spectrum.
    assert abs(np.median(error)) < 0.005 and np.percentile(np.abs(error), 99) < 0.03


def test_bundles_of_one_training_agree_with_the_synthesis_and_each_other(simulator, pair):
    three, two = pair["three"].emulator(), pair["two"].emulator()
    theta = jnp.asarray(draw_parameters(np.random.default_rng(9), simulator.sps.space, 512, 0.0, 1.0))
    exact = over(lambda t: target_flux(simulator, t))(theta)
    fluxes = over(lambda t: three(t))(theta)
    error = np.abs(2.5 * np.log10(fluxes / exact))
    assert np.median(error) < 0.01  # ten times better than networks of whole magnitudes of this size
    near = over(lambda t: two(t))(theta)[:, 0]
    assert np.median(np.abs(2.5 * np.log10(near / fluxes[:, 2]))) < 0.02
    part = pair["two"].emulator(("blue",))
    np.testing.assert_allclose(
        over(lambda t: part(t))(theta)[:, 0], over(lambda t: two(t))(theta)[:, 1], rtol=1e-5
    )
    assert not list(pair["two"].path.parent.glob("draws-*"))


def test_recipes_that_differ_in_draws_are_not_united(recipe_file):
    recipe = load_recipe(recipe_file)
    with pytest.raises(ConfigurationError, match="seed"):
        united([recipe, recipe.model_copy(update={"seed": 5})])


def test_draws_are_kept_for_a_resumed_training(simulator, tmp_path, monkeypatch):
    first = Source(simulator, 3, tmp_path).simulate(1, 256)
    monkeypatch.setattr(Source, "_simulate", lambda *_: pytest.fail("made anew"))
    again = Source(simulator, 3, tmp_path).simulate(1, 256)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_scales_with_the_normalisation(bundle):
    emulator = bundle.emulator()
    theta = jnp.asarray(draw_parameters(np.random.default_rng(1), bundle.space, 1, 0.0, 1.0)[0])
    plain, fainter = over(lambda t: emulator(t))(jnp.stack([theta, theta.at[0].add(2.5)]))
    assert np.allclose(fainter / plain, 0.1, rtol=1e-4)


def test_derived_quantities(bundle, simulator):
    emulator = bundle.emulator()
    assert len(emulator.derived_names) == len(emulator.derived_units)
    theta = (
        jnp.asarray(draw_parameters(np.random.default_rng(2), bundle.space, 256, 0.1, 1.0)).at[:, 0].set(16.0)
    )
    table = dict(
        zip(emulator.derived_names, np.asarray(over(lambda t: emulator.derived(t))(theta)).T, strict=True)
    )
    assert np.all(np.isfinite(list(table.values())))
    assert np.all(table["log10_mass"] <= table["log10_mass_formed"])
    ssfr = table["log10_sfr_100myr"] - table["log10_mass"]
    assert np.allclose(table["log10_ssfr_100myr"], ssfr, atol=2e-3)
    exact = over(lambda t: simulator.sps.weights(t).surviving)(theta)
    assert np.median(np.abs(table["log10_mass"] - table["log10_mass_formed"] - np.log10(exact))) < 0.02


def test_any_subset_of_bands(bundle):
    theta = jnp.asarray(draw_parameters(np.random.default_rng(4), bundle.space, 1, 0.0, 1.0)[0])
    whole = bundle.emulator()(theta)
    part = bundle.emulator(("z", "g"))
    assert part.bands == ("z", "g")
    assert np.allclose(part(theta), whole[jnp.asarray([2, 0])], rtol=1e-5)
    assert np.allclose(
        part.sigma(jnp.asarray(0.3)), bundle.emulator().sigma(jnp.asarray(0.3))[jnp.asarray([2, 0])]
    )
    with pytest.raises(BundleError, match="K"):
        bundle.emulator(("g", "K"))


def test_bundle_tells_its_provenance(bundle):
    manifest = bundle.manifest
    assert set(manifest["filters"]) == {"g", "r", "z"}
    assert all(len(entry["sha256"]) == 64 for entry in manifest["filters"].values())
    assert manifest["synthesis"]["cosmology"] == "Planck18"
    assert (bundle.path / "accuracy.png").stat().st_size > 10_000
    assert "| all |" in (bundle.path / "accuracy.md").read_text()


@pytest.mark.parametrize("damage", ["flip", "truncate", "manifest", "missing", "format"])
def test_damaged_bundles_are_refused(bundle, tmp_path, damage):
    for name in ("manifest.json", "weights.safetensors"):
        (tmp_path / name).write_bytes((bundle.path / name).read_bytes())
    weights, manifest = tmp_path / "weights.safetensors", tmp_path / "manifest.json"
    if damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "manifest":
        manifest.write_text("{")
    elif damage == "missing":
        manifest.write_text(json.dumps({"format": 1}))
    else:
        manifest.write_text(json.dumps({**bundle.manifest, "format": 99}))
    with pytest.raises(BundleError):
        load_bundle(tmp_path)


def test_unknown_keys_and_files_are_refused(recipe_file, tmp_path):
    with pytest.raises(ConfigurationError, match="no file"):
        load_recipe(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump({**RECIPE, "bnads": {}}))
    with pytest.raises(ConfigurationError, match="bnads"):
        load_recipe(bad)
