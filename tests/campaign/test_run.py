"""Campaigns on the toy world, in this process."""

import json
import os
import resource
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import yaml

from popcosmos_hpc.campaign import task
from popcosmos_hpc.campaign.events import read_events
from popcosmos_hpc.campaign.ledger import Ledger
from popcosmos_hpc.campaign.prepare import plan_run
from popcosmos_hpc.campaign.run import StopRequest, run_campaign, with_overrides
from popcosmos_hpc.campaign.status import campaign_status
from popcosmos_hpc.campaign.task import fit_block, infer_block
from popcosmos_hpc.campaign.worker import build_worker
from popcosmos_hpc.config import parse_config
from popcosmos_hpc.errors import BundleError, ConfigurationError, LedgerError, Status
from popcosmos_hpc.survey.plan import Plan
from popcosmos_hpc.survey.posterior_store import CERTIFICATE, read_posterior
from tests import toy_run


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """An undisturbed run."""
    run = toy_run.planned(tmp_path_factory.mktemp("reference") / "run")
    result = run_campaign(run)
    assert (result.exit_code, result.done, result.left) == (0, len(toy_run.blocks(run)), 0)
    return run


@pytest.fixture
def run(tmp_path):
    return toy_run.planned(tmp_path / "run")


def test_every_galaxy_is_fitted_and_bad_photometry_is_flagged(reference):
    status, draws = {}, {}
    for partition in Plan.read(reference / "plan.parquet").partitions:
        data = read_posterior(reference, partition)
        status |= dict(
            zip(data["object_id"].tolist(), data["certificate"][:, CERTIFICATE.index("status")], strict=True)
        )
        draws |= dict(zip(data["object_id"].tolist(), data["theta"], strict=True))
    assert len(status) == toy_run.N_GALAXIES and min(status) > 2**53
    bad = 2**53 + 1 + 7 * toy_run.NAN_GALAXY
    assert status[bad] == Status.BAD_PHOTOMETRY and np.isnan(draws[bad]).all()
    assert all(np.isfinite(draws[name]).all() for name in draws if name != bad)
    done = Ledger(reference).done(toy_run.blocks(reference))
    assert sum(record.n_flagged for record in done.values()) == sum(value != 0 for value in status.values())


def test_partitions_are_folded_and_scratch_is_empty(reference):
    files = [path for path in (reference / "ledger").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"blocks.json"}
    assert not [path for path in (reference / "scratch").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "changes",
    [
        {"partition": {"max_rows": 8, "highest_order": 7}},
        {"block": {"size": 5}},
        {"block": {"size": 60}, "partition": {"max_rows": 100, "highest_order": 4}},
    ],
    ids=["partitions", "blocks", "one block"],
)
def test_results_do_not_depend_on_the_division(reference, tmp_path, changes):
    run = toy_run.planned(tmp_path / "run", **changes)
    assert run_campaign(run).exit_code == 0
    assert toy_run.by_galaxy(run) == toy_run.by_galaxy(reference)


def test_second_fit_has_nothing_to_do(reference):
    before = toy_run.shard_bytes(reference)
    assert run_campaign(reference).exit_code == 0
    assert toy_run.shard_bytes(reference) == before


def test_two_writers_of_one_block(run, reference):
    block, worker = toy_run.blocks(run)[0], build_worker(run)
    results = []

    def write():
        results.append(fit_block(run, block, worker))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] and results[0].state == "done"
    assert run_campaign(run).exit_code == 0
    assert toy_run.shard_bytes(run) == toy_run.shard_bytes(reference)


# ---- refusals


def edit_config(run, **changes):
    settings = yaml.safe_load((run / "run.yaml").read_text())
    for key, value in changes.items():
        settings[key] = {**settings[key], **value} if isinstance(value, dict) else value
    (run / "run.yaml").write_text(yaml.safe_dump(settings))


def test_changed_settings_are_refused_by_name(run):
    edit_config(run, seed=99, sampler={"n_moves": 5})
    with pytest.raises(LedgerError) as caught:
        run_campaign(run)
    message = str(caught.value)
    assert "config.seed: 1 in the run, 99 now" in message
    assert "config.sampler.n_moves: 4 in the run, 5 now" in message
    with pytest.raises(LedgerError, match=r"config\.output\.draws: 20 in the run, 7 now"):
        toy_run.planned(run, output={"draws": 7})


def test_settings_that_touch_no_result_may_change(run):
    edit_config(run, name="renamed", retry={"attempts": 9})
    assert run_campaign(run).exit_code == 0


def test_changed_weights_are_refused(tmp_path):
    bundle = toy_run.write_bundle(tmp_path / "bundle")
    run = toy_run.planned(tmp_path / "run", model={"bundle": str(bundle)})
    weights = bundle / "weights.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(BundleError, match="weights"):
        run_campaign(run)
    toy_run.write_bundle(bundle, scale=1.01)  # whole, but another model
    with pytest.raises(LedgerError, match="weights: '"):
        run_campaign(run)
    with pytest.raises(LedgerError, match="sha256"):
        build_worker(run)
    toy_run.write_bundle(bundle)
    assert run_campaign(run).exit_code == 0


def test_changed_input_is_refused(tmp_path):
    catalog = shutil.copytree(toy_run.catalog(), tmp_path / "catalog")
    run = toy_run.planned(tmp_path / "run", input={"path": str(catalog)})
    part = next(catalog.rglob("Npix=*.parquet"))
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)
    with pytest.raises(LedgerError, match="input: '"):
        run_campaign(run)


def test_changed_plan_is_refused(run):
    plan = Plan.read(run / "plan.parquet")
    Plan(plan.partitions[:-1], plan.block_size).write(run / "plan.parquet")
    with pytest.raises(LedgerError, match="plan: '"):
        run_campaign(run)


def test_changed_code_is_refused_unless_accepted(run):
    path = run / "fingerprint.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "code": "0.0.0+old"}))
    with pytest.raises(LedgerError, match=r"code: '0\.0\.0\+old' in the run.*--accept-code-change"):
        run_campaign(run)
    assert run_campaign(run, accept_code_change=True).exit_code == 0
    assert any(event["event"] == "code_change_accepted" for event in read_events(run))
    assert run_campaign(run).exit_code == 0


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": {"bands": ["u", "Q"]}}, ConfigurationError, "Q"),
        ({"model": {"prior": "analytic"}}, BundleError, "gaussian"),
        ({"model": {"bundle": "/nowhere"}}, BundleError, "/nowhere"),
        ({"model": {"likelihood": {"zero_points": {"Q": 1.0}}}}, ConfigurationError, "Q"),
        ({"sampler": {"n_particle": 4}}, ConfigurationError, "n_particles"),
        ({"sampler": {"name": "smk"}}, ConfigurationError, "smc"),
        ({"output": {"draws": 10_000}}, ConfigurationError, "output.draws"),
        ({"survey": "nowhere"}, ConfigurationError, "nowhere"),
        ({"partition": {"max_rows": 1, "highest_order": 0}}, ConfigurationError, "max_rows"),
    ],
)
def test_plan_refuses_what_cannot_work(tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        plan_run(parse_config(toy_run.settings(**changes), "toy"), tmp_path / "run")
    assert not (tmp_path / "run" / "fingerprint.json").exists()


def test_fit_without_a_plan_is_refused(tmp_path):
    with pytest.raises(LedgerError, match="plan"):
        run_campaign(tmp_path)


# ---- failures


def failing(monkeypatch, fail):
    """Call `fail(block, batch_size)` before every inference."""

    def infer(run_dir, block, worker, batch_size=None, progress=None):
        fail(block, batch_size)
        return infer_block(run_dir, block, worker, batch_size, progress)

    monkeypatch.setattr(task, "infer_block", infer)


def test_full_disk_once_loses_nothing(run, reference, monkeypatch):
    from popcosmos_hpc.survey import posterior_store

    written, original = [], posterior_store.write_block

    def full_disk(scratch, block, *arguments):
        shards = original(scratch, block, *arguments)
        written.append(block.key)
        if len(written) in (1, 4):
            next((scratch / shards[-1].relative_path).parent.iterdir()).write_bytes(b"cut sh")
            raise OSError(28, "No space left on device")
        return shards

    monkeypatch.setattr(posterior_store, "write_block", full_disk)
    assert run_campaign(run).exit_code == 0
    assert toy_run.shard_bytes(run) == toy_run.shard_bytes(reference)
    assert campaign_status(run).failed_attempts == 2
    assert not list((run / "scratch").rglob("b0*"))


def test_kernel_that_refuses_to_write_loses_nothing(run, reference):
    """Files above a limit cannot be written: most draws, but not the small records of the failures."""
    edit_config(run, retry={"attempts": 1, "stop_after_failed_blocks": 3})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1690, hard))
    try:
        result = run_campaign(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (result.exit_code, result.failed) == (1, 3)
    assert "File too large" in campaign_status(run).text()
    assert run_campaign(run, retry_failed=True).exit_code == 0
    assert toy_run.shard_bytes(run) == toy_run.shard_bytes(reference)


def test_disk_that_stays_full_sets_aside_and_retry_heals(run, reference, monkeypatch):
    victim = toy_run.blocks(run)[1].key

    def fail(block, batch_size):
        if block.key == victim:
            raise OSError(28, "No space left on device")

    failing(monkeypatch, fail)
    result = run_campaign(run)
    assert (result.exit_code, result.failed, result.left) == (1, 1, 0)
    status = campaign_status(run)
    assert status.failed == 1 and "No space left" in status.text() and victim in status.text()
    assert "--retry-failed" in status.text()
    monkeypatch.undo()
    assert run_campaign(run).exit_code == 1  # set aside until the user says otherwise
    assert run_campaign(run, retry_failed=True).exit_code == 0
    assert toy_run.shard_bytes(run) == toy_run.shard_bytes(reference)
    assert campaign_status(run).failed == 0


def test_failure_that_cannot_even_be_recorded(run, monkeypatch):
    """Nothing can be written at all: the run ends, and says so, without losing what is done."""
    victim = toy_run.blocks(run)[1].key

    def fail(block, batch_size):
        if block.key == victim:
            raise OSError(28, "No space left on device")

    def no_record(*_):
        raise OSError(28, "No space left on device")

    failing(monkeypatch, fail)
    monkeypatch.setattr(Ledger, "record_failure", no_record)
    result = run_campaign(run)
    assert (result.exit_code, result.failed) == (1, 1)
    monkeypatch.undo()
    assert run_campaign(run).exit_code == 0


def test_out_of_memory_halves_the_batch(run, monkeypatch):
    sizes = []

    def fail(block, batch_size):
        sizes.append(batch_size)
        if len(sizes) < 3:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    failing(monkeypatch, fail)
    edit_config(run, retry={"attempts": 5})
    assert run_campaign(run).exit_code == 0
    assert sizes[0] == 4 and {2, 1} <= set(sizes)


def test_deterministic_error_is_not_tried_again(run, monkeypatch):
    calls = []

    def fail(block, batch_size):
        calls.append(block.key)
        raise ValueError("always")

    failing(monkeypatch, fail)
    edit_config(run, retry={"stop_after_failed_blocks": 3})
    result = run_campaign(run)
    assert len(calls) == 3 == len(set(calls))
    assert (result.exit_code, result.failed, result.done) == (1, 3, 0) and result.left > 0


def test_damaged_record_stops_the_run_by_name(run):
    block = toy_run.blocks(run)[0]
    fit_block(run, block, build_worker(run))
    path = Ledger(run)._record_path(block)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LedgerError, match=r"b00000\.json"):
        run_campaign(run)


def test_stop_in_mid_block_leaves_no_trace(run, reference, monkeypatch):
    stop = StopRequest()

    def fail(block, batch_size):
        if block.index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    failing(monkeypatch, fail)
    result = run_campaign(run, stop=stop)
    assert stop.requested and result.exit_code == 3 and result.done > 0
    assert result.done + result.left == len(toy_run.blocks(run))
    monkeypatch.undo()
    assert run_campaign(run).exit_code == 0
    assert toy_run.shard_bytes(run) == toy_run.shard_bytes(reference)


def test_status_tells_speed_and_what_is_left(run, monkeypatch):
    assert "unknown until" in campaign_status(run).text()
    last = toy_run.blocks(run)[-1].key

    def fail(block, batch_size):
        if block.key == last:
            raise ValueError("no")

    failing(monkeypatch, fail)
    run_campaign(run)
    status = campaign_status(run)
    assert status.galaxies_per_second > 0 and status.seconds_left > 0
    assert status.n_flagged >= 1 and status.done == status.n_blocks - 1
    assert "of 60" in status.text() and "flagged" in status.text()


def test_progress_lines_without_a_terminal(caplog, monkeypatch):
    import logging

    from popcosmos_hpc.campaign import progress

    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO):
        counter = progress.Progress(100, 20)
        time.sleep(0.01)
        counter.tick()
        counter.advance(40)
        counter.close()
    assert "20 of 100" in caplog.messages[0] and "20 of 100 galaxies done, none within" in caplog.messages[1]
    assert "60 of 100" in caplog.messages[2] and "per second" in caplog.messages[2]
    assert progress.format_duration(float("nan")) == "unknown"
    assert progress.format_duration(100_000) == "27 h 46 min"


def test_overrides_of_the_executor_keep_the_rest():
    settings = toy_run.settings(executor={"name": "local", "workers": 2, "memory": "4 GB"})
    config = parse_config(settings, "toy")
    assert with_overrides(config, None, 3).model_dump() == {**config.executor.model_dump(), "workers": 3}
    assert with_overrides(config, "serial", None).workers == 1
    assert with_overrides(parse_config(toy_run.settings(), "toy"), None, 2).name == "local"
