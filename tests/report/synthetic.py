"""A run directory made without a sampler: exact posteriors of the toy world, and masses to go with them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from popcosmos_hpc.campaign.ledger import BlockRecord, Ledger, Shard, new_token
from popcosmos_hpc.config import RunConfig
from popcosmos_hpc.errors import Status
from popcosmos_hpc.inference.summary import QUANTILES, REDSHIFT_QUANTILES
from popcosmos_hpc.model.bundle import load_bundle
from popcosmos_hpc.partition import Partition
from popcosmos_hpc.photometry import BandState
from popcosmos_hpc.survey.photometry_store import write_partition
from popcosmos_hpc.survey.plan import Plan
from popcosmos_hpc.survey.posterior_store import (
    CERTIFICATE,
    BlockPosterior,
    create_partition_store,
    write_block,
)
from tests import toy

DRAWS, BLOCK = 60, 100


def write_run(
    folder: Path,
    counts: tuple[int, ...] = (250, 130),
    finished: bool = True,
    truth: bool = True,
    masses: bool = True,
) -> Path:
    """Write a run of the toy world; with `finished` False, its last block failed and is missing."""
    bundle = load_bundle(_with_filters(toy.write_toy_bundle(folder / "bundle")))
    run = folder / "run"
    run.mkdir(parents=True)
    likelihood = {"family": "gaussian", "error_floor": 0.0}
    config = RunConfig(
        name="toy", survey="toy", input={"path": "catalog"},
        model={"bundle": str(bundle.path), "prior": "gaussian", "likelihood": likelihood},
        output={"draws": DRAWS}, block={"size": BLOCK},
    )  # fmt: skip
    (run / "run.yaml").write_text(yaml.safe_dump(config.resolved()))
    (run / "fingerprint.json").write_text(
        f'{{"weights": "{bundle.sha256}", "code": "0.1+abc", "bands": {list(toy.BANDS)!r}}}'.replace("'", '"')
    )
    partitions = tuple(Partition(3, 7 + place, count) for place, count in enumerate(counts))
    plan = Plan(partitions, BLOCK)
    plan.write(run / "plan.parquet")
    names = (*toy.SPACE.names, *(("log10_mass", "log10_sfr_100myr") if masses else ()))
    for place, partition in enumerate(partitions):
        _write_partition(run, partition, names, place, truth)
    skipped = None if finished else plan.blocks()[-1]
    for number, block in enumerate(plan.blocks()):
        if block == skipped:
            failure = BlockRecord(
                block.key, "failed", 1, "f", block.n_galaxies, error="MemoryError: no", token=new_token()
            )
            Ledger(run).record_failure(block, failure)
        else:
            _write_block(run, block, names, number)
    return run


def _with_filters(bundle: Path) -> Path:
    """Give the toy bands wavelengths, as bundles of real bands have them."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    waves = (3600.0, 4800.0, 6200.0, 7500.0, 8900.0, 9700.0)
    manifest["filters"] = {band: {"pivot": wave} for band, wave in zip(toy.BANDS, waves, strict=True)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def _write_partition(run: Path, partition: Partition, names: tuple[str, ...], seed: int, truth: bool) -> None:
    theta, photometry = toy.toy_photometry(partition.n_galaxies, seed, missing=0.1)
    n = partition.n_galaxies
    columns = {
        "object_id": np.arange(n) + 10_000_000_000_000_000 * (seed + 1),
        "ra": np.full(n, 10.0), "dec": np.full(n, 1.0),
        "_healpix_29": (np.int64(partition.pixel) << 52) + np.arange(n),
        "redshift": np.full(n, np.nan, np.float32), "redshift_err": np.full(n, np.nan, np.float32),
    }  # fmt: skip
    photometry.state[:, 5] = np.where(np.arange(n) % 4 == 1, BandState.LIMIT, photometry.state[:, 5])
    for index, band in enumerate(toy.BANDS):
        columns[f"flux_{band}"] = photometry.flux[:, index]
        columns[f"flux_err_{band}"] = photometry.flux_err[:, index]
        columns[f"state_{band}"] = photometry.state[:, index]
    if truth:
        columns["redshift_spec"] = theta[:, -1]
        columns["redshift_class"] = np.where(np.arange(n) % 3, 4.0, 3.5)
        if "log10_mass" in names:
            columns["log10_mass_true"] = _masses(theta)[..., 0]
    write_partition(run, partition, pa.table(columns))
    units = [f"unit of {name}" for name in names]
    create_partition_store(run, partition, BLOCK, DRAWS, toy.SPACE.names, names, {"quantity_unit": units})


def _masses(theta: np.ndarray) -> np.ndarray:
    mass = 10.0 + 0.4 * theta[..., 0] + 0.2 * theta[..., -1]
    return np.stack([mass, mass - 9.5 + 0.4 * theta[..., 1]], axis=-1)


def _write_block(run: Path, block, names: tuple[str, ...], number: int) -> None:
    seed = int(block.partition.pixel) - 7
    _, photometry = toy.toy_photometry(block.partition.n_galaxies, seed, missing=0.1)
    random = np.random.default_rng(100 + number)
    draws = []
    for row in range(block.start, block.stop):
        exact = toy.exact(type(photometry)(*(array[row] for array in photometry)))
        draws.append(random.multivariate_normal(exact.mean, exact.covariance, DRAWS))
    theta = np.array(draws)
    n = len(theta)
    status = np.where(np.arange(n) % 25 == 3, Status.NOT_CONVERGED, Status.OK).astype(float)
    status[0] = Status.NO_OBSERVED_BAND
    theta[0] = np.nan
    quantities = np.concatenate([theta, _masses(theta)], axis=-1)[..., : len(names)]
    values = {
        "ess": random.uniform(80, 600, n), "pareto_k": np.full(n, np.nan),
        "rhat": 1 + random.exponential(0.01, n),
        "ppp": random.uniform(0, 1, n), "log_evidence": random.normal(-20, 3, n),
        "log_evidence_error": random.uniform(0, 0.1, n), "max_weight": random.uniform(0, 0.05, n),
        "n_distinct": random.integers(20, 50, n),
        "acceptance": random.beta(3, 6, n),
        "n_evaluations": random.integers(2000, 9000, n), "status": status, "sampler": np.ones(n),
    }  # fmt: skip
    data = BlockPosterior(
        object_id=np.arange(block.start, block.stop) + 10_000_000_000_000_000 * (seed + 1),
        theta=theta, log_prior=np.zeros((n, DRAWS)), log_likelihood=np.zeros((n, DRAWS)),
        pool_row=np.full((n, DRAWS), -1),
        summary=np.moveaxis(np.percentile(quantities, QUANTILES, axis=1), 0, -1),
        redshift_quantiles=np.percentile(theta[..., -1], REDSHIFT_QUANTILES, axis=1).T,
        certificate=np.stack([values[name] for name in CERTIFICATE], axis=1),
    )  # fmt: skip
    token = new_token()
    shards = write_block(Ledger(run).scratch(block, token), block, BLOCK, data)
    record = BlockRecord(
        block.key, "done", 1, "f", n, n_flagged=int((status != 0).sum()), seconds=2.0, host="here",
        token=token,
        shards=tuple(Shard(shard.relative_path, shard.sha256, shard.nbytes) for shard in shards),
        time=1_000_000.0 + 3.0 * number,
    )  # fmt: skip
    Ledger(run).commit(block, record)
