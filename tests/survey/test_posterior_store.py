import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from popcosmos_hpc.errors import ConfigurationError, LedgerError, SchemaError
from popcosmos_hpc.parameters import POP_COSMOS
from popcosmos_hpc.partition import Partition
from popcosmos_hpc.survey.posterior_store import (
    CERTIFICATE,
    LOG_DENSITY_STEP,
    BlockPosterior,
    create_partition_store,
    open_partition,
    read_posterior,
    sizes,
    store_key,
    write_block,
)
from popcosmos_hpc.survey.rounding import round_absolute, round_mantissa, round_theta

DRAWS, QUANTITIES, SIZE = 6, 4, 16
PARTITION = Partition(5, 1234, 40)  # two full blocks and a short one
NAMES = POP_COSMOS.names


@pytest.fixture(scope="module")
def posterior() -> BlockPosterior:
    rng = np.random.default_rng(3)
    n, lower = PARTITION.n_galaxies, np.array([max(p.lower, -10) for p in POP_COSMOS.parameters])
    upper = np.array([min(p.upper, 40) for p in POP_COSMOS.parameters])
    theta = lower + (upper - lower) * rng.random((n, DRAWS, len(NAMES)))
    theta[5], theta[6, 0, 0] = np.nan, -np.nan
    certificate = rng.random((n, len(CERTIFICATE)))
    certificate[:, CERTIFICATE.index("n_evaluations")] = 2**24 - 1
    return BlockPosterior(
        np.arange(n) + 2**60 + 1, theta.astype(np.float32), rng.normal(-20, 3, (n, DRAWS)),
        np.where(rng.random((n, DRAWS)) < 0.1, -np.inf, -5.0), rng.integers(-1, 2**31, (n, DRAWS)),
        rng.random((n, QUANTITIES, 5)),
        rng.random((n, 21)), certificate,
    )  # fmt: skip


def rows(data: BlockPosterior, block) -> BlockPosterior:
    return BlockPosterior(*(array[block.start : block.stop] for array in data))


def create(run_dir: Path, **changes) -> Path:
    arguments = {
        "block_size": SIZE,
        "draws": DRAWS,
        "param_names": NAMES,
        "summary_names": ["a", "b", "c", "d"],
    }
    return create_partition_store(
        run_dir, PARTITION, **({"attrs": {"units": ("mag",)}} | arguments | changes)
    )


def fill(run_dir: Path, data: BlockPosterior, blocks=None) -> None:
    create(run_dir)
    for block in blocks or PARTITION.blocks(SIZE):
        shards = write_block(run_dir / "scratch" / "x", block, SIZE, rows(data, block), 8, POP_COSMOS)
        for shard in shards:
            target = run_dir / shard.relative_path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(run_dir / "scratch" / "x" / shard.relative_path, target)
            assert target.stat().st_size == shard.nbytes


def test_all_blocks_come_back_rounded(tmp_path, posterior):
    fill(tmp_path, posterior)
    read = read_posterior(tmp_path, PARTITION)
    assert set(read) == set(BlockPosterior._fields)
    assert np.array_equal(read["object_id"], posterior.object_id)
    assert np.array_equal(np.isnan(read["theta"]), np.isnan(posterior.theta))
    for index, parameter in enumerate(POP_COSMOS.parameters):
        scale = max(
            min(parameter.upper - parameter.lower, 40.0), np.nanmax(np.abs(posterior.theta[..., index]))
        )
        error = np.abs(read["theta"][..., index] - posterior.theta[..., index])
        assert np.nanmax(error) <= scale * 2**-9
    assert np.nanmax(np.abs(read["theta"] - posterior.theta)[..., NAMES.index("redshift")]) <= 8 * 2**-13
    assert np.abs(read["log_prior"] - posterior.log_prior).max() <= LOG_DENSITY_STEP
    assert np.array_equal(np.isneginf(read["log_likelihood"]), np.isneginf(posterior.log_likelihood))
    assert (read["certificate"][:, CERTIFICATE.index("n_evaluations")] == 2**24 - 1).all()
    assert read["summary"] == pytest.approx(posterior.summary, rel=2**-12)
    assert dict(open_partition(tmp_path, PARTITION).attrs)["units"] == ["mag"]


def test_one_parameter_of_some_rows(tmp_path, posterior):
    fill(tmp_path, posterior)
    whole = read_posterior(tmp_path, PARTITION, ["theta"])["theta"]
    part = read_posterior(tmp_path, PARTITION, ["theta.redshift"], 10, 30)["theta.redshift"]
    assert np.array_equal(part, whole[10:30, :, NAMES.index("redshift")])
    with pytest.raises(SchemaError, match=r"theta\.redshift"):
        read_posterior(tmp_path, PARTITION, ["theta.mass"])


def test_blocks_not_fitted_are_nan(tmp_path, posterior):
    fill(tmp_path, posterior, PARTITION.blocks(SIZE)[1:2])
    read = read_posterior(tmp_path, PARTITION)
    assert (read["object_id"] >= 0).tolist() == [SIZE <= k < 2 * SIZE for k in range(40)]
    assert np.isnan(read["certificate"][:SIZE]).all()
    assert sizes(tmp_path)["total"] > 0 and sizes(tmp_path / "none") == {}


def test_the_same_data_are_the_same_bytes_and_only_this_blocks_shards(tmp_path, posterior):
    for block in PARTITION.blocks(SIZE):
        first = write_block(tmp_path / "a", block, SIZE, rows(posterior, block))
        second = write_block(tmp_path / "b", block, SIZE, rows(posterior, block))
        assert first == second and len(first) == len(BlockPosterior._fields)
        found = {str(f.relative_to(tmp_path / "a")) for f in (tmp_path / "a").rglob("c/**/*") if f.is_file()}
        assert found == {shard.relative_path for shard in first}
        shutil.rmtree(tmp_path / "a")


def test_draws_do_not_depend_on_the_block_size(tmp_path, posterior):
    whole = PARTITION.blocks(64)[0]
    write_block(tmp_path, whole, 64, posterior, 8, POP_COSMOS)
    create(tmp_path / "run", block_size=64)
    shutil.copytree(
        tmp_path / store_key(PARTITION), tmp_path / "run" / store_key(PARTITION), dirs_exist_ok=True
    )
    fill(tmp_path / "small", posterior)
    for name, values in read_posterior(tmp_path / "small", PARTITION).items():
        other = np.asarray(open_partition(tmp_path, PARTITION)[name][:])
        assert values.tobytes() == other.tobytes()


def test_constant_blocks_are_written_nevertheless(tmp_path):
    n = PARTITION.n_galaxies
    nothing = BlockPosterior(
        np.arange(n), np.full((n, DRAWS, len(NAMES)), np.nan), np.full((n, DRAWS), np.nan),
        np.full((n, DRAWS), np.nan), np.full((n, DRAWS), -1), np.full((n, QUANTITIES, 5), np.nan),
        np.full((n, 21), np.nan),
        np.full((n, len(CERTIFICATE)), np.nan),
    )  # fmt: skip
    block = PARTITION.blocks(SIZE)[0]
    assert len(write_block(tmp_path, block, SIZE, rows(nothing, block))) == len(BlockPosterior._fields)


def test_a_store_of_other_facts_is_refused(tmp_path):
    assert create(tmp_path) == create(tmp_path)
    with pytest.raises(LedgerError, match="draws"):
        create(tmp_path, draws=DRAWS + 1)
    with pytest.raises(LedgerError, match="weights"):
        create(tmp_path, attrs={"weights": "other"})
    with pytest.raises(LedgerError, match="popcosmos-hpc fit"):
        open_partition(tmp_path, replace(PARTITION, pixel=7))


def test_a_renamed_run_keeps_its_store(tmp_path):
    assert create(tmp_path, attrs={"run": "old"}) == create(tmp_path, attrs={"run": "new"})
    assert open_partition(tmp_path, PARTITION).attrs["run"] == "old"


def test_a_new_store_is_on_disk_before_it_appears(tmp_path, monkeypatch):
    synced = set()

    def sync(path):
        assert not (tmp_path / store_key(PARTITION)).exists()
        synced.add(path)

    monkeypatch.setattr("popcosmos_hpc.survey.files.sync", sync)
    created = create(tmp_path)
    (scratch,) = (path for path in synced if path.parent == tmp_path / "scratch")
    assert {path.relative_to(scratch) for path in synced - {scratch}} == {
        path.relative_to(created) for path in created.rglob("*")
    }


def test_wrong_lengths_and_bits_are_refused(tmp_path, posterior):
    block = PARTITION.blocks(SIZE)[0]
    with pytest.raises(SchemaError, match="16 galaxies"):
        write_block(tmp_path, block, SIZE, posterior)
    with pytest.raises(ConfigurationError, match="keep_bits"):
        write_block(tmp_path, block, SIZE, rows(posterior, block), 24)


def test_a_full_disk_raises_and_the_same_write_succeeds_later(tmp_path, posterior):
    block = PARTITION.blocks(SIZE)[0]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            write_block(tmp_path, block, SIZE, rows(posterior, block))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    expected = write_block(tmp_path / "other", block, SIZE, rows(posterior, block))
    assert write_block(tmp_path, block, SIZE, rows(posterior, block)) == expected


def test_rounding_keeps_specials_and_its_bound():
    values = np.concatenate(
        [np.random.default_rng(0).normal(0, 100, 1000), [0.0, -0.0, np.inf, -np.inf, np.nan]]
    )
    rounded = round_mantissa(values, 10)
    finite = np.isfinite(values)
    assert (np.abs(rounded[finite] - values[finite]) <= np.abs(values[finite]) * 2**-11 * 1.001).all()
    assert np.array_equal(rounded[~finite], values[~finite].astype(np.float32), equal_nan=True)
    assert np.array_equal(round_mantissa(rounded, 10), rounded, equal_nan=True)
    assert not np.signbit(rounded[1001]) and np.array_equal(
        round_mantissa(values, 23)[:1000], values.astype("f4")[:1000]
    )
    assert round_absolute(np.array([0.3, -0.3, np.inf]), 0.25).tolist() == [0.25, -0.25, np.inf]
    negative_nan = np.array([0xFFC00001], np.uint32).view(np.float32)
    assert round_absolute(negative_nan, 0.5).tobytes() == round_mantissa(np.array([np.nan]), 5).tobytes()


def test_without_a_parameter_space_rounding_is_relative():
    theta = np.array([[[1e-5, 3.0]]], np.float32)
    assert round_theta(theta, 10) == pytest.approx(theta, rel=2**-11)
