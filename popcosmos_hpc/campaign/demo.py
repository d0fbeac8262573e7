"""The demo: a mock survey taken through every step of a run, in one folder."""

import logging
import os
from pathlib import Path

from popcosmos_hpc.campaign.cluster import open_client
from popcosmos_hpc.campaign.export import export
from popcosmos_hpc.campaign.ingest import ingest
from popcosmos_hpc.campaign.mock import MockSurvey, write_mock
from popcosmos_hpc.campaign.pool import build_survey_pool
from popcosmos_hpc.campaign.pool_config import load_pool_config
from popcosmos_hpc.campaign.prepare import plan_run
from popcosmos_hpc.campaign.run import CampaignResult, run_campaign, with_overrides
from popcosmos_hpc.campaign.worker import build_model, worker_environment
from popcosmos_hpc.config import ExecutorConfig, RunConfig, SamplerConfig, load_config
from popcosmos_hpc.survey.preset import load_preset

logger = logging.getLogger(__name__)
DEFAULT_GALAXIES = 128


def run_demo(
    run_dir: Path, config_name: str = "demo", n_galaxies: int | None = None, workers: int | None = None
) -> CampaignResult:
    """Mock survey, ingest, plan, fit and export; steps that are finished are kept.

    Args:
        run_dir: run directory; the mock survey and its catalog lie in its folder `mock`.
        config_name: run configuration, a name or a file; its input is replaced by the mock's catalog.
        n_galaxies: size of the mock survey.
        workers: processes of the fit; the configuration's if None.

    Raises:
        ConfigurationError: the configuration does not fit its survey or bundle.
        LedgerError: the folder holds another run.
    """
    config, n_galaxies = load_config(config_name), n_galaxies or DEFAULT_GALAXIES
    executor = with_overrides(config, None, workers)
    if executor.name == "serial":  # before JAX starts its device
        os.environ.update(worker_environment(executor.threads_per_worker))
    # Named by its size: another size is another input, which the fingerprint refuses.
    catalog = run_dir / "mock" / f"catalog_{n_galaxies}"
    if not catalog.exists():
        _make_catalog(config, catalog, n_galaxies)
    settings = config.model_copy(
        update={
            "input": config.input.model_copy(update={"path": str(catalog)}),
            "executor": executor,
            "sampler": _with_pool(config.sampler, run_dir / "mock" / "pool", executor),
        }
    )
    plan = plan_run(settings, run_dir)
    logger.info("planned %d galaxies in %d blocks", plan.n_galaxies, len(plan.blocks()))
    result = run_campaign(run_dir)
    if not result.interrupted and result.done:
        export(run_dir)
    return result


def _with_pool(sampler: SamplerConfig, folder: Path, executor: ExecutorConfig) -> SamplerConfig:
    """The sampler with a pool that exists: a ladder's own, or the demo's, built if it is not there."""
    if sampler.name != "ladder" or Path(str(sampler.settings.get("pool", ""))).is_dir():
        return sampler
    if not folder.exists():
        pool = load_pool_config("demo")
        logger.info("drawing a pool of %d galaxies from the population", pool.n_draws)
        with open_client(executor) as client:
            build_survey_pool(pool, folder, client)
    return SamplerConfig.model_validate({**sampler.model_dump(), "pool": str(folder)})


def _make_catalog(config: RunConfig, catalog: Path, n_galaxies: int) -> None:
    from popcosmos_hpc.model.bundle import load_bundle

    preset, bundle = load_preset(config.survey), load_bundle(config.model.bundle)
    bands = config.model.bands or tuple(band for band in bundle.bands if band in preset.band_names)
    table = catalog.with_name(f"survey_{n_galaxies}.parquet")
    logger.info("drawing a mock survey of %d galaxies in %s", n_galaxies, ", ".join(bands))
    write_mock(table, build_model(config.model, bundle, bands), MockSurvey(n_galaxies, seed=config.seed))
    result = ingest(table, preset, catalog, highest_order=7)
    logger.info("%d rows: %d kept, %d rejected", result.n_in, result.n_kept, result.n_rejected)
