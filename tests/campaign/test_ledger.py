import json
import multiprocessing
import os
import shutil

import pytest

from popcosmos_hpc.campaign.ledger import FOLDED, BlockRecord, Ledger, Shard, new_token
from popcosmos_hpc.errors import LedgerError
from popcosmos_hpc.partition import Partition

PARTITION = Partition(3, 17, 10)
BLOCK = PARTITION.blocks(4)[1]
SHARD = "posterior/Norder=3/Dir=0/Npix=17.zarr/theta/c/1/0/0"


def write_attempt(ledger, block, content=b"draws", token=None):
    token = token or new_token()
    path = ledger.scratch(block, token) / SHARD.replace("c/1", f"c/{block.index}")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    shards = (Shard(str(path.relative_to(ledger.scratch(block, token))), "0" * 64, len(content)),)
    return BlockRecord(block.key, "done", 1, "f", block.n_galaxies, token=token, shards=shards)


def failure(block, token=None):
    return BlockRecord(
        block.key, "failed", 1, "f", 4, error="OSError: x", error_class="storage", token=token or new_token()
    )


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path)


def test_commit_moves_shards_and_is_read_back(ledger):
    record = write_attempt(ledger, BLOCK)
    assert ledger.record(BLOCK) is None
    standing = ledger.commit(BLOCK, record)
    assert standing == record.sealed() == ledger.record(BLOCK)
    assert (ledger.run_dir / SHARD).read_bytes() == b"draws"
    assert not ledger.scratch(BLOCK, record.token).exists()


def test_second_writer_loses(ledger):
    first, second = write_attempt(ledger, BLOCK, b"first"), write_attempt(ledger, BLOCK, b"second")
    ledger.commit(BLOCK, first)
    assert ledger.commit(BLOCK, second).token == first.token
    assert (ledger.run_dir / SHARD).read_bytes() == b"first"
    assert not ledger.scratch(BLOCK, second.token).exists()


def test_a_link_that_succeeded_but_was_reported_as_existing_is_won(ledger, monkeypatch):
    link = os.link

    def twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    record = write_attempt(ledger, BLOCK)
    assert ledger.commit(BLOCK, record).token == record.token
    assert (ledger.run_dir / SHARD).read_bytes() == b"draws"
    assert not ledger.scratch(BLOCK, record.token).exists()


def _race(run_dir, index, barrier):
    ledger = Ledger(run_dir)
    record = write_attempt(ledger, BLOCK, b"%d" % index, f"host-{os.getpid()}-{index}")
    barrier.wait(60)
    ledger.commit(BLOCK, record)


def test_writers_that_race_leave_one_record_and_its_own_shard(ledger):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(6)
    writers = [context.Process(target=_race, args=(ledger.run_dir, i, barrier)) for i in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    record = ledger.record(BLOCK)
    assert (ledger.run_dir / SHARD).read_text() == record.token.rsplit("-", 1)[1]
    assert not list((ledger.run_dir / "scratch").rglob("b0*"))


def test_rename_cut_short_is_finished(ledger):
    record = write_attempt(ledger, BLOCK)
    ledger._publish(ledger._record_path(BLOCK), record)  # killed right here
    assert not (ledger.run_dir / SHARD).exists()
    assert ledger.finish_interrupted(PARTITION.blocks(4)) == 1
    assert (ledger.run_dir / SHARD).read_bytes() == b"draws"
    assert ledger.finish_interrupted(PARTITION.blocks(4)) == 0


def test_shard_that_is_nowhere_is_named(ledger):
    ledger.commit(BLOCK, write_attempt(ledger, BLOCK))
    (ledger.run_dir / SHARD).unlink()
    with pytest.raises(LedgerError, match="theta/c/1/0/0"):
        ledger.finish_interrupted(PARTITION.blocks(4))


def test_scratch_of_the_dead_is_swept_and_of_the_living_kept(ledger):
    host = new_token().rsplit("-", 2)[0]
    dead = write_attempt(ledger, BLOCK, token=f"{host}-{2**22 + 1}-00000000")
    alive = write_attempt(ledger, BLOCK, token=f"{host}-1-00000000")
    elsewhere = write_attempt(ledger, BLOCK, token="other.host-5-00000000")
    ledger.finish_interrupted(PARTITION.blocks(4))
    kept = {
        token for token in (dead.token, alive.token, elsewhere.token) if ledger.scratch(BLOCK, token).exists()
    }
    assert kept == {alive.token, elsewhere.token}


def test_fold_keeps_all_facts(ledger):
    blocks = PARTITION.blocks(4)
    ledger.record_failure(BLOCK, failure(BLOCK))
    for block in blocks[:2]:
        ledger.commit(block, write_attempt(ledger, block))
    assert not ledger.fold(PARTITION, 4)
    ledger.commit(blocks[2], write_attempt(ledger, blocks[2]))
    before = ledger.facts(blocks)
    assert ledger.fold(PARTITION, 4) and ledger.fold(PARTITION, 4)
    assert ledger.facts(blocks) == before
    assert [path.name for path in ledger._folder(PARTITION).iterdir()] == [FOLDED]
    assert ledger.record(BLOCK) == before[0][BLOCK.key]


def test_late_writer_after_folding_loses(ledger):
    for block in PARTITION.blocks(4):
        ledger.commit(block, write_attempt(ledger, block, b"early"))
    late = write_attempt(ledger, BLOCK, b"late")
    ledger.fold(PARTITION, 4)
    assert ledger.commit(BLOCK, late).token != late.token
    assert (ledger.run_dir / SHARD).read_bytes() == b"early"
    assert [path.name for path in ledger._folder(PARTITION).iterdir()] == [FOLDED]


def test_fold_finishes_the_rename_of_a_dead_winner(ledger):
    for block in PARTITION.blocks(4):
        ledger._publish(ledger._record_path(block), write_attempt(ledger, block))
    ledger.fold(PARTITION, 4)
    assert (ledger.run_dir / SHARD).exists()


@pytest.mark.parametrize("damage", ["truncate", "edit", "empty", "list", "field"])
@pytest.mark.parametrize("folded", [False, True])
def test_damaged_record_is_named(ledger, damage, folded):
    for block in PARTITION.blocks(4):
        ledger.commit(block, write_attempt(ledger, block))
    if folded:
        ledger.fold(PARTITION, 4)
    path = ledger._folder(PARTITION) / FOLDED if folded else ledger._record_path(BLOCK)
    text = path.read_text()
    damaged = {
        "truncate": text[: len(text) // 2],
        "edit": text.replace('"attempt": 1', '"attempt": 2'),
        "empty": "",
        "list": "3",
        "field": text.replace("n_flagged", "n_flaged"),
    }
    path.write_text(damaged[damage])
    with pytest.raises(LedgerError, match=path.name):
        ledger.facts(PARTITION.blocks(4))


def test_failures_are_facts_in_order(ledger):
    records = [failure(BLOCK) for _ in range(3)]
    for record in records:
        ledger.record_failure(BLOCK, record)
    done, failed = ledger.facts(PARTITION.blocks(4))
    assert not done
    assert [record.token for record in failed[BLOCK.key]] == [record.token for record in records]


def test_records_are_whole_json(ledger):
    ledger.commit(BLOCK, write_attempt(ledger, BLOCK))
    content = json.loads(ledger._record_path(BLOCK).read_text())
    assert content["shards"][0]["path"] == SHARD and len(content["sha256"]) == 64
    assert not list(ledger._folder(PARTITION).glob(".*"))
    shutil.rmtree(ledger.run_dir / "ledger")
    assert ledger.facts(PARTITION.blocks(4)) == ({}, {})
