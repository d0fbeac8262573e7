"""Pools on disk: built, resumed, refused when they do not belong to a run, checked when damaged."""

import json
import shutil

import numpy as np
import pytest

from popcosmos_hpc.campaign import pool as building
from popcosmos_hpc.campaign.pool import build_survey_pool
from popcosmos_hpc.campaign.pool_config import PoolConfig, load_pool_config
from popcosmos_hpc.errors import BundleError, ConfigurationError
from popcosmos_hpc.inference.tiles import assign, grow_tree
from popcosmos_hpc.survey.pool_store import decode, encode, open_pool, verify_pool
from tests import toy_pool, toy_run

SMALL = {"n_draws": 30_000, "n_tiles": 64}


@pytest.fixture
def jobs_of_10000_draws(monkeypatch):
    monkeypatch.setattr(building, "_JOB_DRAWS", 10_000)
    monkeypatch.setattr(building, "_SHARD_ROWS", 16_384)


@pytest.fixture
def small(tmp_path, jobs_of_10000_draws):
    return build_survey_pool(toy_pool.settings(**SMALL), tmp_path / "pool")


def columns(store):
    return {name: store.column(name) for name in ("rows", "theta", "draw")}


def test_holds_every_draw_once_in_the_order_of_tiles(small):
    draw = small.column("draw")
    np.testing.assert_array_equal(np.sort(draw), np.arange(30_000))
    assert len(small.manifest["shards"]) == 2
    start = small.tiles["start"]
    assert start[0] == 0 and start[-1] == 30_000 and np.all(np.diff(start) > 0)
    rows = small.column("rows")
    np.testing.assert_array_equal(rows[:, -1], draw & 0xFFFF)
    flux = np.ascontiguousarray(rows[:, :-2]).view(np.float16).astype(float)
    for tile in (0, 17, 63):
        inside = flux[start[tile] : start[tile + 1]]
        np.testing.assert_allclose(small.tiles["flux"][tile], inside.mean(0), rtol=1e-4)
        np.testing.assert_allclose(small.tiles["variance"][tile], inside.var(0), rtol=1e-2, atol=1e-4)
    # Tiles separate draws: what is left inside is a small part of the variance.
    assert np.mean(small.tiles["variance"].mean(0) / flux.var(0)) < 0.5


def test_a_draw_does_not_depend_on_the_size_of_the_pool(small, tmp_path):
    larger = build_survey_pool(toy_pool.settings(n_draws=50_000, n_tiles=128), tmp_path / "larger")
    one, other = columns(small), columns(larger)
    first, second = np.argsort(one["draw"]), np.argsort(other["draw"])[:30_000]
    np.testing.assert_array_equal(one["theta"][first], other["theta"][second])
    np.testing.assert_array_equal(one["rows"][first], other["rows"][second])


def test_goes_on_after_a_stop(tmp_path, jobs_of_10000_draws, monkeypatch, small):
    drawn = []
    original = building.draw_shard

    def interrupted(settings, folder, start, stop):
        if start == 20_000 and len(drawn) < 3:
            drawn.append("stop")
            raise KeyboardInterrupt
        drawn.append(start)
        return original(settings, folder, start, stop)

    monkeypatch.setattr(building, "draw_shard", interrupted)
    config = toy_pool.settings(**SMALL)
    with pytest.raises(KeyboardInterrupt):
        build_survey_pool(config, tmp_path / "again")
    store = build_survey_pool(config, tmp_path / "again")
    assert store.sha256 == small.sha256
    assert not (tmp_path / ".again.partial").exists()


def test_a_limit_leaves_out_faint_draws_and_counts_them(tmp_path):
    limit = {"band": "r", "magnitude": 20.0}
    store = build_survey_pool(toy_pool.settings(**SMALL, limit=limit), tmp_path / "pool")
    flux = np.ascontiguousarray(store.column("rows")[:, :-2]).view(np.float16)[:, 2]
    assert flux.min() >= 9.99  # 20 mag
    assert 0 < store.manifest["n_kept"] < store.manifest["n_drawn"] == 30_000


def test_damage_is_found(small, tmp_path):
    verify_pool(small)
    damaged = tmp_path / "damaged"
    shutil.copytree(small.path, damaged)
    file = damaged / "shard-00001.rows.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(BundleError, match="bytes"):
        open_pool(damaged)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match="sha256"):
        verify_pool(open_pool(damaged))
    manifest = json.loads((damaged / "manifest.json").read_text())
    del manifest["n_drawn"]
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="n_drawn"):
        open_pool(damaged)
    with pytest.raises(BundleError, match="pool build"):
        open_pool(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": {"band": "Q", "magnitude": 24.0}}, "one of the bands"),
        ({"limit": {"band": "r", "magnitude": 1.0}}, "draws that pass"),
        ({"model": {"bundle": str(toy_run.bundle()), "prior": "gaussian", "bands": ("Q",)}}, "bands among"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises((ConfigurationError, BundleError), match=message):
        build_survey_pool(toy_pool.settings(**{**SMALL, **changes}), tmp_path / "pool")


def test_tiles_are_a_power_of_two():
    with pytest.raises(ValueError, match="power of two"):
        PoolConfig.model_validate({"name": "a", "model": {"bundle": "b", "prior": "c"}, "n_tiles": 100})


def test_shipped_configurations_load():
    assert load_pool_config("kids").model.bundle == "kids9"


def test_codes_are_even_over_the_range():
    low, high = np.array([-2.0, 0.0]), np.array([0.5, 6.0])
    theta = np.random.default_rng(1).uniform(low, high, (1000, 2))
    found = decode(encode(theta, low, high), low, high)
    assert np.abs(found - theta).max() <= 0.5 * 6.0 / 65535 + 1e-6
    np.testing.assert_array_equal(encode(np.array([[-9.0, 9.0]]), low, high), [[0, 65535]])


def test_a_tree_is_balanced_and_sorts_alike():
    flux = np.random.default_rng(2).lognormal(size=(4096, 3)).astype(np.float32)
    tree = grow_tree(flux, np.full(3, 0.1), 64)
    leaf = assign(tree, flux)
    np.testing.assert_array_equal(np.bincount(leaf, minlength=64), 64)
    np.testing.assert_array_equal(assign(tree, flux[100:103]), leaf[100:103])
    assert grow_tree(flux[:5], np.full(3, 0.1), 64).n_leaves == 1
