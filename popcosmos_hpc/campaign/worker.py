"""One process that fits: device settings, and the model and sampler built once."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from popcosmos_hpc.campaign.compilation_cache import cache_folder
from popcosmos_hpc.campaign.fingerprint import read_fingerprint, short_hash
from popcosmos_hpc.campaign.ladder import build_ladder, check_ladder, check_pool, ladder_settings
from popcosmos_hpc.config import LikelihoodConfig, ModelConfig, RunConfig, parse_config
from popcosmos_hpc.errors import ConfigurationError, LedgerError
from popcosmos_hpc.survey.pool_store import PoolStore, open_pool

RUN_FILE = "run.yaml"
PLAN_FILE = "plan.parquet"


@dataclass(frozen=True)
class Worker:
    """What a process needs to fit blocks of one run.

    Args:
        config: settings of the run.
        fingerprint: short hash of the run's fingerprint.
        weights: sha256 of the bundle.
        model: the `GalaxyModel`.
        sampler: the sampler.
        summary_names: quantities that are summarised.
        summary_units: their units.
    """

    config: RunConfig
    fingerprint: str
    weights: str
    model: Any
    sampler: Any
    summary_names: tuple[str, ...]
    summary_units: tuple[str, ...]


def worker_environment(threads: int) -> dict[str, str]:
    """Environment variables of a fitting process; they count only before JAX starts its device.

    Args:
        threads: threads for arithmetic on a CPU. The number can change sums in their last digit, so it
            is the same in all executors of a run.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if threads == 1 and "xla_cpu_multi_thread_eigen" not in flags:
        flags = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    settings = {
        "NPROC": str(threads),  # XLA sizes its thread pool by it
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder()),
    }
    return {**settings, "XLA_FLAGS": flags} if flags else settings


def set_up_device() -> None:
    """Settings of JAX that every fitting process shares."""
    import jax

    # Accelerators multiply in reduced precision unless told otherwise; the emulators need float32.
    jax.config.update("jax_default_matmul_precision", "highest")
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def read_run(run_dir: Path) -> RunConfig:
    """Settings of a planned run.

    Raises:
        LedgerError: the folder holds no run.
        ConfigurationError: its settings were changed to illegal ones.
    """
    path = run_dir / RUN_FILE
    if not path.exists():
        raise LedgerError("a planned run directory", f"no {RUN_FILE}", str(run_dir), "Run `plan` first.")
    try:
        return parse_config(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
    except yaml.YAMLError as error:
        raise ConfigurationError("a YAML file", " ".join(str(error).split()), str(path)) from error


def build_worker(run_dir: Path) -> Worker:
    """Model and sampler of a run, built once per process.

    Raises:
        LedgerError: the bundle's weights are not those of the run.
    """
    return _build(str(run_dir.resolve()), short_hash(read_fingerprint(run_dir)))


@lru_cache(maxsize=2)
def _build(run_dir: str, fingerprint: str) -> Worker:
    set_up_device()
    from popcosmos_hpc.inference.summary import summary_names
    from popcosmos_hpc.model.bundle import load_bundle

    config = read_run(Path(run_dir))
    bundle = load_bundle(config.model.bundle)
    stored = read_fingerprint(Path(run_dir))
    if bundle.sha256 != stored["weights"]:
        raise LedgerError(
            f"a bundle of sha256 {stored['weights']}",
            bundle.sha256,
            str(config.model.bundle),
            "Restore the bundle that the run was planned with, or plan a new run.",
        )
    prior = prior_hash(config.model)
    if prior != stored.get("prior"):
        raise LedgerError(
            f"a population bundle of sha256 {stored.get('prior')}", str(prior), config.model.prior,
            "Restore the population that the run was planned with, or plan a new run.",
        )  # fmt: skip
    if (pool := pool_hash(config)) != stored.get("pool"):
        raise LedgerError(
            f"a pool of sha256 {stored.get('pool')}", str(pool), config.sampler.name,
            "Restore the pool that the run was planned with, or plan a new run.",
        )  # fmt: skip
    model = build_model(config.model, bundle, tuple(stored["bands"]))
    parameter_units = tuple(parameter.unit for parameter in model.space.parameters)
    return Worker(
        config=config,
        fingerprint=fingerprint,
        weights=bundle.sha256,
        model=model,
        sampler=make_sampler(config, bundle, model.bands),
        summary_names=tuple(summary_names(model)),
        summary_units=parameter_units + tuple(model.emulator.derived_units),
    )


def prior_hash(settings: ModelConfig) -> str | None:
    """sha256 of the population bundle that is the prior; None for priors that are code."""
    from popcosmos_hpc.model.bundle import BUILT_IN_PRIORS, load_bundle

    if settings.prior in BUILT_IN_PRIORS:
        return None
    return load_bundle(settings.prior, "population").sha256


def build_model(settings: ModelConfig, bundle: Any, bands: tuple[str, ...]) -> Any:
    """The `GalaxyModel` of a run or of a mock.

    Args:
        settings: of the model.
        bundle: the loaded bundle.
        bands: its bands, in order.

    Raises:
        BundleError: the bundle lacks a band or the prior.
    """
    from popcosmos_hpc.model.galaxy import GalaxyModel
    from popcosmos_hpc.model.likelihood import Likelihood

    noise = settings.likelihood
    zero_points, floors = _per_band(noise, bands)
    likelihood = Likelihood(zero_points, floors, noise.family, 2.0 if noise.nu is None else noise.nu)
    return GalaxyModel(bundle.emulator(bands), likelihood, bundle.prior(settings.prior))


def make_sampler(config: RunConfig, bundle: Any, bands: tuple[str, ...]) -> Any:
    """The sampler or the ladder of a run.

    Raises:
        ConfigurationError: the sampler or one of its settings is unknown, or the pool is of another model.
        BundleError: the pool is missing or damaged.
    """
    from popcosmos_hpc.inference.sampler import build_sampler

    if config.sampler.name != "ladder":
        return build_sampler(config.sampler.name, **config.sampler.settings)
    return build_ladder(config, _open_pool(config, bundle, bands))


def check_sampler(config: RunConfig, bundle: Any, bands: tuple[str, ...]) -> int:
    """Check the sampler of a run before anything is queued; a pool is opened, but not read.

    Returns:
        the most draws that it can return.

    Raises:
        ConfigurationError: as for `make_sampler`.
        BundleError: as for `make_sampler`.
    """
    if config.sampler.name != "ladder":
        return make_sampler(config, bundle, bands).max_draws
    _open_pool(config, bundle, bands)
    return check_ladder(config)


def _open_pool(config: RunConfig, bundle: Any, bands: tuple[str, ...]) -> PoolStore:
    store = open_pool(ladder_settings(config).pool)
    prior = prior_hash(config.model) or config.model.prior
    check_pool(store, bands, bundle.sha256, prior, "sampler.pool")
    if ladder_settings(config).amplitude is not None and store.manifest["limit"] is not None:
        raise ConfigurationError(
            "a pool without a limit for the amplitude rung: what is left out has shapes too",
            f"one with {store.manifest['limit']}",
            "sampler.amplitude",
            "Build a pool without a limit, or leave the amplitude rung out.",
        )
    return store


def pool_facts(config: RunConfig) -> dict[str, Any]:
    """What a store of posteriors says about the pool that its draws refer to."""
    if not config.output.by_reference:
        return {}
    store = open_pool(ladder_settings(config).pool)
    return {"pool": str(store.path), "pool_sha256": store.sha256}


def pool_hash(config: RunConfig) -> str | None:
    """sha256 of the pool of a run, and of the amplitude student if there is one; None without a ladder."""
    if config.sampler.name != "ladder":
        return None
    from popcosmos_hpc.model.bundle import load_bundle

    settings = ladder_settings(config)
    sha256 = open_pool(settings.pool).sha256
    if settings.amplitude is None:
        return sha256
    return f"{sha256} {load_bundle(settings.amplitude, 'amplitude').sha256}"


def _per_band(settings: LikelihoodConfig, bands: tuple[str, ...]) -> tuple[list[float], list[float]]:
    named = set(settings.zero_points)
    if isinstance(settings.error_floor, dict):
        named |= set(settings.error_floor)
        if bare := [band for band in bands if band not in settings.error_floor]:
            raise ConfigurationError(
                f"an error_floor for each of the bands {', '.join(bands)}",
                f"none for {', '.join(bare)}",
                "model.likelihood.error_floor",
                "Name every band (0 is allowed), or give one number for all.",
            )
        floors = [settings.error_floor[band] for band in bands]
    else:
        floors = [float(settings.error_floor)] * len(bands)
    if strange := sorted(named - set(bands)):
        raise ConfigurationError(
            f"zero_points and error_floor for the bands {', '.join(bands)}",
            ", ".join(strange),
            "model.likelihood",
            "Remove these bands or add them to model.bands.",
        )
    return [settings.zero_points.get(band, 1.0) for band in bands], floors
