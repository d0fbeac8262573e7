import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from popcosmos_hpc.errors import BundleError, ConfigurationError
from popcosmos_hpc.model.bundle import load_bundle
from popcosmos_hpc.training import simulation
from popcosmos_hpc.training.emulator import train_from_config
from popcosmos_hpc.training.recipe import load_recipe
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
