"""Whole runs on the toy world: catalog, bundle, preset and configuration, all by file."""

import functools
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from popcosmos_hpc.config import parse_config
from popcosmos_hpc.model.bundle import save_bundle
from popcosmos_hpc.partition import Block
from popcosmos_hpc.survey.plan import Plan
from tests import toy

N_GALAXIES = 60
NAN_GALAXY = 7  # row whose flux in one band is infinite


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="toy_run_")


@functools.cache
def bundle() -> Path:
    return write_bundle(Path(_folder().name) / "bundle")


def write_bundle(folder: Path, scale: float = 1.0) -> Path:
    weights = toy.arrays()
    manifest = {
        "name": "toy",
        "emulator": "linear",
        "bands": list(toy.BANDS),
        "space": toy.SPACE.to_list(),
        "redshift_range": [-5.0, 10.0],
    }
    arrays = {
        "linear.matrix": weights["matrix"] * np.float32(scale),
        "linear.offset": weights["offset"],
        "prior.mean": weights["mean"],
        "prior.cholesky": weights["cholesky"],
    }
    return save_bundle(folder, manifest, arrays)


@functools.cache
def preset() -> Path:
    bands = [{"name": band, "flux": f"f_{band}", "err": f"e_{band}"} for band in toy.BANDS]
    settings = {"name": "toy", "id": "id", "ra": "ra", "dec": "dec", "bands": bands, "unit": "nanomaggies"}
    settings["passthrough"] = {"truth_redshift": "truth_redshift"}
    path = Path(_folder().name) / "toy_survey.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def table(n: int = N_GALAXIES) -> pa.Table:
    theta, photometry = toy.toy_photometry(n, seed=3, missing=0.1)
    random = np.random.default_rng(11)
    flux = np.where(np.isfinite(photometry.flux), photometry.flux, np.nan)
    if n > NAN_GALAXY:
        flux[NAN_GALAXY, 1] = np.inf
    columns = {
        "id": np.arange(n) * 7 + 2**53 + 1,
        "ra": random.uniform(10, 22, n),
        "dec": random.uniform(-6, 6, n),
        "truth_redshift": theta[:, -1],
    }
    for index, band in enumerate(toy.BANDS):
        columns[f"f_{band}"], columns[f"e_{band}"] = flux[:, index], photometry.flux_err[:, index]
    return pa.table(columns)


@functools.cache
def catalog(n: int = N_GALAXIES) -> Path:
    from popcosmos_hpc.campaign.ingest import ingest

    folder = Path(_folder().name)
    pq.write_table(table(n), folder / f"table_{n}.parquet")
    out = folder / f"catalog_{n}"
    result = ingest(folder / f"table_{n}.parquet", str(preset()), out, highest_order=6)
    assert result.n_kept + result.n_rejected == n
    return out


def settings(**changes) -> dict:
    """Configuration of a toy run; sections are merged one level deep."""
    base = {
        "name": "toy",
        "survey": str(preset()),
        "input": {"path": str(catalog())},
        "partition": {"max_rows": 30, "highest_order": 6},
        "block": {"size": 8},
        "model": {
            "bundle": str(bundle()),
            "prior": "gaussian",
            "likelihood": {"family": "gaussian", "error_floor": 0.0},
        },
        "sampler": {"name": "smc", "batch_size": 4, "n_particles": 16, "n_pool": 512, "n_moves": 4},
        "output": {"draws": 20},
        "retry": {"attempts": 2, "backoff": "0.01 s"},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and key in base else value
    return base


def planned(run_dir: Path, **changes) -> Path:
    return planned_from(run_dir, settings(**changes))


def planned_from(run_dir: Path, given: dict) -> Path:
    from popcosmos_hpc.campaign.prepare import plan_run

    plan_run(parse_config(given, "toy"), run_dir)
    return run_dir


def blocks(run_dir: Path) -> tuple[Block, ...]:
    return Plan.read(run_dir / "plan.parquet").blocks()


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "popcosmos_hpc.cli", *map(str, arguments)]


def start(*arguments: object) -> subprocess.Popen:
    """A command in its own process group."""
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def kill_group(process: subprocess.Popen) -> None:
    """SIGKILL of a command and of all the processes it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def call(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout)


def shard_bytes(run_dir: Path) -> dict[str, bytes]:
    """Every file of the posterior stores, chunks and metadata."""
    root = run_dir / "posterior"
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def by_galaxy(run_dir: Path) -> dict[int, bytes]:
    """All stored data of each galaxy, by id."""
    from popcosmos_hpc.survey.posterior_store import read_posterior

    found = {}
    for partition in Plan.read(run_dir / "plan.parquet").partitions:
        data = read_posterior(run_dir, partition)
        for row, name in enumerate(data["object_id"]):
            found[int(name)] = b"".join(data[key][row].tobytes() for key in sorted(data))
    return found
