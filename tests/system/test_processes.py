"""The command in processes of its own: kills, interrupts, lost workers, exit codes."""

import os
import random
import signal
import subprocess
import time

import pytest
import yaml

from popcosmos_hpc.campaign.events import read_events
from popcosmos_hpc.campaign.run import run_campaign
from popcosmos_hpc.campaign.status import campaign_status
from tests import toy_run

# Many small blocks, so that a random moment falls into the midst of one.
MANY = {"block": {"size": 2}, "sampler": {"batch_size": 2}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Bytes of a run that nobody disturbed, made in a process as the others are."""
    run = toy_run.planned(tmp_path_factory.mktemp("undisturbed") / "run", **MANY)
    done = toy_run.call("fit", run)
    assert done.returncode == 0, done.stderr
    return toy_run.shard_bytes(run)


def n_records(run):
    return len(list((run / "ledger").rglob("b0*.json")))


def wait_for_record(run, process, count=1):
    deadline = time.monotonic() + 240
    while n_records(run) < count and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill_at_random_and_resume(run, chance, *options):
    """SIGKILL of a fit and all its workers a random while after its first new record; then to the end."""
    before = n_records(run)
    process = toy_run.start("fit", run, *options)
    wait_for_record(run, process, before + 1)
    time.sleep(chance.uniform(0.0, 0.5))
    left = campaign_status(run).left
    toy_run.kill_group(process)
    return left


def test_killed_run_ends_with_the_same_bytes(tmp_path, undisturbed):
    run = toy_run.planned(tmp_path / "run", **MANY)
    assert kill_at_random_and_resume(run, random.Random(1)) > 0
    done = toy_run.call("fit", run)
    assert done.returncode == 0, done.stderr
    assert toy_run.shard_bytes(run) == undisturbed
    assert not list((run / "scratch").rglob("b0*"))


@pytest.mark.slow
def test_run_killed_again_and_again_ends_with_the_same_bytes(tmp_path, undisturbed):
    chance, kills = random.Random(int(os.environ.get("POPCOSMOS_KILL_SEED", "7"))), 0
    for attempt in range(30):
        run = toy_run.planned(tmp_path / f"run{attempt}", **MANY)
        options = ("--workers", "2") if attempt % 2 else ("--executor", "serial")
        while kill_at_random_and_resume(run, chance, *options) and kills < 12:
            kills += 1
        assert toy_run.call("fit", run, *options).returncode == 0
        assert toy_run.shard_bytes(run) == undisturbed
        if kills >= 12:
            break
    assert kills >= 10


def test_two_fits_of_one_run_at_once(tmp_path, undisturbed):
    run = toy_run.planned(tmp_path / "run", **MANY)
    fits = [toy_run.start("fit", run) for _ in range(2)]
    for fit in fits:
        _, errors = fit.communicate(timeout=300)
        assert fit.returncode == 0, errors
    assert toy_run.shard_bytes(run) == undisturbed


def test_interrupt_stops_cleanly_and_says_how_to_go_on(tmp_path, undisturbed):
    run = toy_run.planned(tmp_path / "run", **MANY)
    process = toy_run.start("fit", run)
    wait_for_record(run, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert f"popcosmos-hpc fit {run}" in errors and "Traceback" not in errors
    assert 0 < campaign_status(run).done < campaign_status(run).n_blocks
    assert run_campaign(run).exit_code == 0
    assert toy_run.shard_bytes(run) == undisturbed


def children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(child) for child in listed.stdout.split()]


def test_local_workers_survive_a_lost_worker_and_an_interrupt(tmp_path, undisturbed):
    """One run through it all, for starting workers is slow: a worker is killed, then Ctrl-C, then the end."""
    run = toy_run.planned(tmp_path / "run", **MANY)
    process = toy_run.start("fit", run, "--workers", "2")
    wait_for_record(run, process, 2)
    workers = [child for child in children(process.pid) if "spawn_main" in command_of(child)]
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (0, 3), errors
    assert "Traceback" not in errors
    done = toy_run.call("fit", run)
    assert done.returncode == 0, done.stderr
    assert toy_run.shard_bytes(run) == undisturbed
    assert campaign_status(run).failed_attempts == 0
    names = [event["event"] for event in read_events(run)]
    assert names.count("session_started") == 2


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            return stream.read().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_changed_configuration_exits_with_2(tmp_path):
    run = toy_run.planned(tmp_path / "run")
    settings = yaml.safe_load((run / "run.yaml").read_text())
    (run / "run.yaml").write_text(yaml.safe_dump({**settings, "seed": 5}))
    refused = toy_run.call("fit", run)
    assert refused.returncode == 2
    assert "config.seed: 1 in the run, 5 now" in refused.stderr and "Traceback" not in refused.stderr
