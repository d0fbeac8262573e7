"""Audits: who is chosen, that they are fitted once, and that the report finds what is wrong."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from popcosmos_hpc.campaign.audit import chosen, make_auditor, read_audit, run_audit
from popcosmos_hpc.campaign.run import run_campaign
from popcosmos_hpc.campaign.worker import build_worker
from popcosmos_hpc.config import parse_config
from popcosmos_hpc.errors import ConfigurationError, Status
from popcosmos_hpc.report.audit import audit_section
from popcosmos_hpc.report.page import write_report
from popcosmos_hpc.report.run_data import read_run_data
from popcosmos_hpc.report.section import Table
from popcosmos_hpc.survey.posterior_store import CERTIFICATE, read_posterior
from tests import toy_run

ENSEMBLE = {"n_walkers": 16, "n_pool": 2048, "n_warmup": 100, "n_samples": 200, "n_kept": 10}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = toy_run.planned(
        tmp_path_factory.mktemp("audit") / "run",
        sampler={"n_particles": 64, "n_pool": 4096, "n_moves": 8, "ess_min": 20.0},
        output={"draws": 100},
        audit={"fraction": 0.5, "samplers": {"ensemble": ENSEMBLE}},
    )
    assert run_campaign(folder).exit_code == 0
    run_audit(folder)
    return folder


def test_the_choice_depends_on_seed_and_identifier_alone():
    ids = np.arange(20_000, dtype=np.int64) + 2**53
    few, many = chosen(5, ids, 0.01), chosen(5, ids, 0.1)
    assert np.all(many[few])  # a larger fraction adds galaxies
    assert abs(many.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / len(ids))
    np.testing.assert_array_equal(chosen(5, ids[::-1], 0.01)[::-1], few)
    assert np.any(chosen(6, ids, 0.01) != few)


def test_the_chosen_are_fitted_again_and_agree(run):
    table = read_audit(run)["ensemble"]
    ids = np.array(sorted(toy_run.by_galaxy(run)))
    assert sorted(table["object_id"].to_pylist()) == ids[chosen(1, ids, 0.5)].tolist()
    good = np.isin(table["status"].to_numpy(), [Status.OK]) & (table["run_status"].to_numpy() == Status.OK)
    assert good.sum() > 10
    shift, error = np.array(table["shift"].to_pylist())[good], table["shift_error"].to_numpy()[good]
    # Particles of one ensemble are not independent, so effective sizes are themselves uncertain.
    assert 0.5 < np.sqrt(np.mean((shift / error[:, None]) ** 2)) < 1.6
    assert np.mean(np.array(table["width_ratio"].to_pylist())[good]) == pytest.approx(1.0, abs=0.1)


def test_nobody_is_fitted_twice_by_the_same_auditor(run):
    assert run_audit(run) == 0


def test_the_run_is_not_changed(run):
    before = toy_run.shard_bytes(run)
    run_audit(run, 0.1, ("smc",))
    assert toy_run.shard_bytes(run) == before


def test_the_report_lists_galaxies_that_disagree(run, tmp_path):
    section = audit_section(read_run_data(run))
    assert not [
        block for block in section.blocks if isinstance(block, Table) and "disagree (" in block.caption
    ]
    path = next(path for path in sorted((run / "audit" / "ensemble").glob("*")) if len(pq.read_table(path)))
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row in rows:
        row["shift"] = [value + 3.0 for value in row["shift"]]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    listed = [block for block in audit_section(read_run_data(run)).blocks if isinstance(block, Table)][-1]
    assert "disagree (" in listed.caption and listed.rows[0][2] in toy_run.toy.SPACE.names
    page = write_report(run, tmp_path / "report.html").read_text()
    assert "run against ensemble" not in page  # letters of figures are paths
    assert ">Audit<" in page and listed.rows[0][0] in page
    pq.write_table(table, path)


def test_no_audit_is_said(tmp_path):
    folder = toy_run.planned(tmp_path / "run")
    run_campaign(folder)
    assert run_audit(folder) == 0 and not read_audit(folder)
    assert "second sampler" in audit_section(read_run_data(folder)).blocks[0].text


@pytest.mark.parametrize(
    ("audit", "message"),
    [
        ({"samplers": {"nots": {}}}, "nuts"),
        ({"samplers": {"nuts": {"n_chain": 4}}}, "n_chains"),
        ({"samplers": {"exhaustive": {}}}, "sampler.name ladder"),
        ({"samplers": {}}, "at least 1"),
        ({"fraction": 1.5}, "less than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused_at_planning(tmp_path, audit, message):
    with pytest.raises(ConfigurationError, match=message):
        toy_run.planned(tmp_path / "run", audit=audit)
    assert not (tmp_path / "run").exists()


def test_audits_do_not_touch_the_fingerprint():
    plain = parse_config(toy_run.settings(), "toy")
    assert plain.hash() == parse_config(toy_run.settings(audit={"fraction": 0.2}), "toy").hash()


def test_an_exhaustive_audit_needs_a_pool(run):
    with pytest.raises(ConfigurationError, match="ladder"):
        make_auditor(build_worker(run), "exhaustive", {})
    partition = toy_run.blocks(run)[0].partition
    assert read_posterior(run, partition, ["certificate"])["certificate"].shape[1] == len(CERTIFICATE)
