"""What a run costs on a device: rates of every rung, against what the device can do, and whole surveys."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from popcosmos_hpc.campaign.task import read_data
from popcosmos_hpc.campaign.worker import PLAN_FILE, build_worker, read_run, worker_environment
from popcosmos_hpc.errors import ConfigurationError, Status
from popcosmos_hpc.photometry import Photometry
from popcosmos_hpc.survey.plan import Plan

SURVEYS = {"KiDS": 70_000_000, "Rubin": 20_000_000_000}
"""Galaxies to which costs are projected."""
_MATRIX, _VECTOR = 1024, 1 << 25
_TIMES = 5


@dataclass(frozen=True)
class Ceilings:
    """What the device can do, measured: matrix products [FLOP/s] and copies in memory [bytes/s]."""

    flops: float
    nbytes: float


@dataclass(frozen=True)
class RungRate:
    """One rung of the ladder.

    Args:
        name: of the rung.
        n_in: galaxies that it was given.
        n_certified: galaxies that stopped at it.
        seconds: per galaxy that it was given.
        flops: floating-point operations per galaxy by the compiler's count; NaN where loops hide them.
        nbytes: bytes touched per galaxy by the compiler's count; NaN likewise.
    """

    name: str
    n_in: int
    n_certified: int
    seconds: float
    flops: float
    nbytes: float


@dataclass(frozen=True)
class Bench:
    """Measured rates of a run on this device.

    Args:
        device: what JAX calls it, and how many threads arithmetic has.
        ceilings: of the device.
        rungs: in the order of the ladder.
        n_galaxies: galaxies that were fitted.
        seconds: per galaxy, all rungs and the summaries together.
        stored: bytes per galaxy on disk, an estimate from the arrays' sizes.
    """

    device: str
    ceilings: Ceilings
    rungs: tuple[RungRate, ...]
    n_galaxies: int
    seconds: float
    stored: float


def bench_run(run_dir: str | Path, n_galaxies: int = 256) -> Bench:
    """Fit some galaxies of a planned run and time every rung; nothing is written.

    Args:
        run_dir: run directory.
        n_galaxies: galaxies, from the run's own photometry.

    Raises:
        LedgerError: the folder holds no run.
        ConfigurationError: it has no galaxy that can be fitted.
    """
    run_dir = Path(run_dir)
    os.environ.update(worker_environment(read_run(run_dir).executor.threads_per_worker))
    worker = build_worker(run_dir)
    import jax

    object_id, photometry = _galaxies(run_dir, worker, n_galaxies)
    rungs, seconds = _time_rungs(worker, object_id, photometry)
    device = jax.devices()[0]
    threads = os.environ.get("NPROC", "all")
    return Bench(
        f"{device.device_kind} ({device.platform}), {threads} thread(s)",
        measure_ceilings(),
        tuple(rungs),
        len(object_id),
        seconds,
        4.0 * worker.config.output.draws * (len(worker.model.space.names) + 2),
    )


def _galaxies(run_dir: Path, worker: Any, n_galaxies: int) -> tuple[np.ndarray, Photometry]:
    from popcosmos_hpc.inference.batch import examine

    ids, parts, total = [], [], 0
    for block in Plan.read(run_dir / PLAN_FILE).blocks():
        object_id, photometry = read_data(run_dir, block, worker)
        good = examine(photometry, worker.model) == Status.OK
        ids.append(object_id[good])
        parts.append(Photometry(*(values[good] for values in photometry)))
        total += int(good.sum())
        if total >= n_galaxies:
            break
    if total == 0:
        raise ConfigurationError("galaxies that can be fitted", "none", str(run_dir))
    joined = Photometry(*(np.concatenate(values)[:n_galaxies] for values in zip(*parts, strict=True)))
    return np.concatenate(ids)[:n_galaxies], joined


def _time_rungs(worker: Any, object_id: np.ndarray, photometry: Photometry) -> tuple[list[RungRate], float]:
    from popcosmos_hpc.inference.batch import count_work, fit_galaxies
    from popcosmos_hpc.inference.ladder import Ladder, Rung
    from popcosmos_hpc.inference.summary import summarise

    config, sampler = worker.config, worker.sampler
    ladder = sampler if isinstance(sampler, Ladder) else Ladder((Rung(config.sampler.name, sampler),))
    rows, rates, total = np.arange(len(object_id)), [], 0.0
    for rung in ladder.rungs:
        if len(rows) == 0:
            break
        part = Photometry(*(values[rows] for values in photometry))
        arguments = (rung.sampler, worker.model, part, object_id[rows], config.seed)
        settings = {"batch_size": config.sampler.batch_size, "draws": config.output.draws}
        first = Photometry(*(values[:1] for values in part))
        fit_galaxies(rung.sampler, worker.model, first, object_id[rows[:1]], config.seed, **settings)
        start = time.perf_counter()
        posterior = fit_galaxies(*arguments, **settings)
        summarise(worker.model, posterior)
        elapsed = time.perf_counter() - start
        certified = posterior.status == Status.OK
        work = count_work(rung.sampler, worker.model, part, config.seed)
        rates.append(RungRate(rung.name, len(rows), int(certified.sum()), elapsed / len(rows), *work))
        total += elapsed
        rows = rows[~certified]
    return rates, total / len(object_id)


def measure_ceilings() -> Ceilings:
    """Best of a few runs of a matrix product and of a copy, both in float32."""
    import jax.numpy as jnp

    from popcosmos_hpc.inference.batch import copied, multiplied

    square, vector = jnp.ones((_MATRIX, _MATRIX)), jnp.ones(_VECTOR)
    return Ceilings(
        2.0 * _MATRIX**3 / _best(lambda: multiplied(square, square)),
        2.0 * vector.nbytes / _best(lambda: copied(vector)),
    )


def _best(work: Callable[[], Any]) -> float:
    work().block_until_ready()
    seconds = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        work().block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def describe_bench(bench: Bench) -> str:
    """The measurement as a table for a terminal."""
    lines = [
        f"device     {bench.device}",
        f"ceilings   {bench.ceilings.flops / 1e9:.1f} GFLOP/s in matrix products, "
        f"{bench.ceilings.nbytes / 1e9:.1f} GB/s in copies",
        "",
        f"{'rung':<14}{'given':>7}{'certified':>11}{'ms/galaxy':>11}{'galaxies/s':>12}{'GFLOP/s':>9}{'GB/s':>7}",
    ]
    for rung in bench.rungs:
        share = f"{100 * rung.n_certified / rung.n_in:.1f} %"
        rates = [_giga(rung.flops / rung.seconds), _giga(rung.nbytes / rung.seconds)]
        lines.append(
            f"{rung.name:<14}{rung.n_in:>7}{share:>11}{1e3 * rung.seconds:>11.3g}{1 / rung.seconds:>12.4g}"
            f"{rates[0]:>9}{rates[1]:>7}"
        )
    certified = sum(rung.n_certified for rung in bench.rungs)
    lines += [
        "",
        f"all        {bench.n_galaxies} galaxies, {100 * certified / bench.n_galaxies:.1f} % certified, "
        f"{1e3 * bench.seconds:.3g} ms each",
    ]
    for name, count in SURVEYS.items():
        hours, terabytes = count * bench.seconds / 3600, count * bench.stored / 1e12
        lines.append(
            f"{name:<11}{count:.3g} galaxies: {hours:.3g} hours of this device; "
            f"at most {terabytes:.3g} TB of draws"
        )
    return "\n".join(lines)


def _giga(value: float) -> str:
    return f"{value / 1e9:.3g}" if np.isfinite(value) else "-"
