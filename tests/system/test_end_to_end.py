"""From a mock survey to a report on the toy world, by the command alone."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from popcosmos_hpc.cli import main
from tests import toy, toy_run

GALAXIES = 40


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    """A run configuration and a survey preset for the columns of the mock survey."""
    folder = tmp_path_factory.mktemp("demo")
    bands = [{"name": band, "flux": f"flux_{band}", "err": f"flux_err_{band}"} for band in toy.BANDS]
    preset = {"name": "toy", "id": "object_id", "ra": "ra", "dec": "dec", "bands": bands}
    (folder / "survey.yaml").write_text(yaml.safe_dump({**preset, "passthrough": ["truth_*"]}))
    settings = toy_run.settings(survey=str(folder / "survey.yaml"), executor="serial")
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def demo(configuration, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "demo_run"
    return run, invoke("demo", "--out", run, "--config", configuration, "--galaxies", GALAXIES)


def invoke(*arguments):
    return CliRunner().invoke(main, [str(item) for item in arguments])


def test_demo_makes_every_product(demo):
    run, outcome = demo
    assert outcome.exit_code == 0, outcome.output
    assert f"{GALAXIES} of {GALAXIES} (100.0 %)" in outcome.output
    assert (run / "report.html").stat().st_size > 10_000
    assert (run / "mock" / f"catalog_{GALAXIES}").is_dir()


def test_exported_rows_are_the_mock_galaxies(demo):
    run, _ = demo
    files = sorted((run / "catalog").rglob("Npix=*.parquet"))
    found = np.concatenate([pq.read_table(path, columns=["object_id"])["object_id"] for path in files])
    table = pq.read_table(run / "mock" / f"survey_{GALAXIES}.parquet").to_pandas().dropna(subset=["dec"])
    assert sorted(found) == sorted(table["object_id"])


def test_demo_again_keeps_finished_steps(demo, configuration):
    run, _ = demo
    before = toy_run.shard_bytes(run)
    again = invoke("demo", "--out", run, "--config", configuration, "--galaxies", GALAXIES)
    assert again.exit_code == 0, again.output
    assert toy_run.shard_bytes(run) == before


def test_demo_of_another_size_in_the_same_folder_is_refused(demo, configuration):
    run, _ = demo
    refused = invoke("demo", "--out", run, "--config", configuration, "--galaxies", GALAXIES + 1)
    assert refused.exit_code == 2 and "input" in refused.output


def test_steps_one_by_one(demo, configuration, tmp_path):
    """The verbs give what the demo gave; the catalog is the demo's table, ingested anew."""
    demo_run, _ = demo
    catalog, run = tmp_path / "catalog", tmp_path / "run"
    preset = configuration.with_name("survey.yaml")
    table = demo_run / "mock" / f"survey_{GALAXIES}.parquet"
    ingested = invoke("ingest", table, "--preset", preset, "--out", catalog, "--highest-order", 6)
    assert (
        ingested.exit_code == 0 and f"{GALAXIES} kept" in ingested.output and "2 rejected" in ingested.output
    )
    planned = invoke("plan", configuration, "--run", run, "--input", catalog)
    assert planned.exit_code == 0 and f"fit {run}" in planned.output
    assert "0 done" in invoke("status", run).output
    assert invoke("fit", run).exit_code == 0
    assert f"{GALAXIES} of {GALAXIES}" in invoke("status", run).output
    assert invoke("export", run).exit_code == 0
    assert invoke("report", run).exit_code == 0 and (run / "report.html").exists()
    assert toy_run.by_galaxy(run) == toy_run.by_galaxy(demo_run)


@pytest.mark.parametrize("n", [1, 3])
def test_one_galaxy_and_fewer_rows_than_workers(tmp_path, n):
    run = toy_run.planned(tmp_path / "run", input={"path": str(toy_run.catalog(n))})
    fitted = toy_run.call("fit", run, "--workers", 4) if n == 3 else invoke("fit", run)
    assert (fitted.returncode if n == 3 else fitted.exit_code) == 0
    assert len(toy_run.by_galaxy(run)) == n
