"""A run with the ladder on the toy world, by file: plan, fit, export; and pools that do not belong to it."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from popcosmos_hpc.campaign.export import export
from popcosmos_hpc.campaign.pool import build_survey_pool
from popcosmos_hpc.campaign.pool_checks import check_memory
from popcosmos_hpc.campaign.run import run_campaign
from popcosmos_hpc.campaign.worker import read_run
from popcosmos_hpc.config import ExecutorConfig, parse_config
from popcosmos_hpc.errors import BundleError, ConfigurationError, LedgerError, Status
from popcosmos_hpc.survey.plan import Plan
from popcosmos_hpc.survey.posterior_store import CERTIFICATE, read_posterior
from tests import toy, toy_pool, toy_run

SMC = {"n_particles": 64, "n_moves": 12, "n_picks": 8192}


def sampler(pool) -> dict:
    return {"name": "ladder", "batch_size": 8, "pool": str(pool), "picks": [8192], "smc": SMC}


def settings(pool, **changes) -> dict:
    base = toy_run.settings(output={"draws": 100}, **changes)
    return {**base, "sampler": sampler(pool)}


def certificate(run_dir, name: str) -> np.ndarray:
    parts = Plan.read(run_dir / "plan.parquet").partitions
    arrays = [read_posterior(run_dir, part, ["certificate"])["certificate"] for part in parts]
    return np.concatenate(arrays)[:, CERTIFICATE.index(name)]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder") / "run"
    toy_run.planned_from(folder, settings(toy_pool.store().path))
    assert run_campaign(folder).exit_code == 0
    return folder


def test_every_galaxy_is_fitted_by_some_rung(run_dir):
    status, by = certificate(run_dir, "status"), certificate(run_dir, "sampler")
    assert len(status) == toy_run.N_GALAXIES
    assert np.sum(status == Status.BAD_PHOTOMETRY) == 1
    assert np.mean(status == Status.OK) > 0.9
    assert set(by.astype(int)) == {-1, 3, 6}
    assert np.all(certificate(run_dir, "n_distinct")[by == 3] >= 50)


def test_exports_the_whole_certificate(run_dir, tmp_path):
    export(run_dir, tmp_path / "catalog")
    files = list((tmp_path / "catalog").rglob("Npix=*.parquet"))
    names = pq.read_schema(files[0]).names
    assert {"log_evidence_error", "max_weight", "n_distinct"} <= set(names)


def test_a_changed_pool_is_refused(tmp_path):
    pool = tmp_path / "pool"
    shutil.copytree(toy_pool.store().path, pool)
    folder = tmp_path / "run"
    toy_run.planned_from(folder, settings(pool))
    shutil.rmtree(pool)
    with pytest.raises(BundleError, match="pool build"):
        run_campaign(folder)
    build_survey_pool(toy_pool.settings(n_draws=30_000, n_tiles=64), pool)
    with pytest.raises(LedgerError, match="pool"):
        run_campaign(folder)


@pytest.mark.parametrize("other", ["bands", "bundle", "prior"])
def test_a_pool_of_another_model_is_refused(tmp_path, other):
    small = {"n_draws": 20_000, "n_tiles": 64}
    bundle = str(toy_run.write_bundle(tmp_path / "bundle", 1.1) if other == "bundle" else toy_run.bundle())
    bands = ("r", "g", "u") if other == "bands" else None
    model = {"bundle": bundle, "prior": "gaussian", "bands": bands}
    store = build_survey_pool(toy_pool.settings(**small, model=model), tmp_path / "pool")
    if other == "prior":
        manifest = json.loads((store.path / "manifest.json").read_text())
        manifest["identity"]["prior"] = "another"
        (store.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigurationError, match=f"a pool of the {other}"):
        toy_run.planned_from(tmp_path / "run", settings(store.path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"poool": "x"}, "did you mean|unknown key"),
        ({"picks": []}, "at least 1"),
        ({"picks": [100]}, "1024"),
        ({"ess_min": 5}, "50"),
        ({"smc": {"n_ensembles": 3}}, "multiple of 3"),
        ({"smc": {"n_moovs": 3}}, "n_moves"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, changes, message):
    config = settings(toy_pool.store().path)
    config["sampler"] = {**config["sampler"], **changes}
    with pytest.raises(ConfigurationError, match=f"(?i){message}"):
        toy_run.planned_from(tmp_path / "run", config)


def test_references_to_a_pool_need_the_ladder():
    config = toy_run.settings(output={"draws": 20, "by_reference": True})
    with pytest.raises(ConfigurationError, match="by_reference only with"):
        parse_config(config, "toy")


def test_amplitudes_need_a_pool_without_a_limit(tmp_path):
    limit = {"band": "r", "magnitude": 20.0}
    store = build_survey_pool(toy_pool.settings(n_draws=20_000, n_tiles=64, limit=limit), tmp_path / "pool")
    config = settings(store.path)
    config["sampler"] = {**config["sampler"], "amplitude": "reference_amplitude"}
    with pytest.raises(ConfigurationError, match="pool without a limit"):
        toy_run.planned_from(tmp_path / "run", config)


@pytest.fixture(scope="module")
def by_reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "run"
    given = settings(toy_pool.store().path)
    toy_run.planned_from(folder, {**given, "output": {"draws": 100, "by_reference": True}})
    assert run_campaign(folder).exit_code == 0
    return folder


def test_draws_by_reference_are_read_as_if_they_were_stored(run_dir, by_reference):
    for part in Plan.read(run_dir / "plan.parquet").partitions:
        plain = read_posterior(run_dir, part)
        referred = read_posterior(by_reference, part)
        from_pool = plain["certificate"][:, CERTIFICATE.index("sampler")] == 3
        assert from_pool.any()
        # Stored parameters are rounded to ten bits; those of the pool are not.
        np.testing.assert_allclose(
            referred["theta"][from_pool], plain["theta"][from_pool], rtol=2e-3, atol=2e-3
        )
        np.testing.assert_array_equal(referred["theta"][~from_pool], plain["theta"][~from_pool])
        for name in ("summary", "pool_row", "log_likelihood", "certificate"):
            np.testing.assert_array_equal(referred[name], plain[name])
        one = read_posterior(by_reference, part, ["theta.redshift"])["theta.redshift"]
        np.testing.assert_array_equal(one, referred["theta"][..., -1])
        stored = zarr.open_group(by_reference / "posterior" / f"{part.key}.zarr", mode="r")
        assert np.all(np.isnan(np.asarray(stored["theta"][:])[from_pool]))


def test_draws_by_reference_need_their_pool(by_reference, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(by_reference, copy)
    part = Plan.read(copy / "plan.parquet").partitions[0]
    store = zarr.open_group(copy / "posterior" / f"{part.key}.zarr", mode="r+")
    store.attrs["pool_sha256"] = "0" * 64
    with pytest.raises(LedgerError, match="pool of sha256"):
        read_posterior(copy, part)
    store.attrs["pool"] = str(tmp_path / "gone")
    with pytest.raises(BundleError, match="pool"):
        read_posterior(copy, part)


def test_a_pool_with_a_limit_near_the_galaxies_is_refused(tmp_path):
    limit = {"band": toy.BANDS[0], "magnitude": 21.0}
    store = build_survey_pool(toy_pool.settings(n_draws=20_000, n_tiles=64, limit=limit), tmp_path / "pool")
    with pytest.raises(ConfigurationError, match=r"at least 1 mag fainter.*% of them fainter than 20"):
        toy_run.planned_from(tmp_path / "run", settings(store.path))
    assert not (tmp_path / "run" / "fingerprint.json").exists()
    faint = {**limit, "magnitude": 30.0}
    store = build_survey_pool(toy_pool.settings(n_draws=20_000, n_tiles=64, limit=faint), tmp_path / "faint")
    toy_run.planned_from(tmp_path / "run", settings(store.path))


def test_a_pool_that_memory_cannot_hold_is_refused(run_dir):
    config, nbytes = read_run(run_dir), toy_pool.store().nbytes
    check_memory(config, ExecutorConfig(), available=int(1.2 * nbytes))
    with pytest.raises(
        ConfigurationError, match=r"fits 2 times in the .* GB of memory that are free.*fewer draws"
    ):
        check_memory(config, ExecutorConfig(name="local", workers=2), available=int(1.2 * nbytes))
    with pytest.raises(ConfigurationError, match=r"0.001 GB of a worker"):
        check_memory(config, ExecutorConfig(memory="0.001 GB"))
    check_memory(parse_config(toy_run.settings(), "toy"), ExecutorConfig(), available=0)
