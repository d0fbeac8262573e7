"""From a catalog to a run directory: plan, photometry, resolved settings, fingerprint."""

import json
import logging
from pathlib import Path
from typing import Any

import yaml

from popcosmos_hpc.campaign import fingerprint as prints
from popcosmos_hpc.campaign.audit import check_audit
from popcosmos_hpc.campaign.events import log_event
from popcosmos_hpc.campaign.pool_checks import check_depth
from popcosmos_hpc.campaign.worker import (
    PLAN_FILE,
    RUN_FILE,
    build_model,
    check_sampler,
    pool_hash,
    prior_hash,
    read_run,
)
from popcosmos_hpc.config import RunConfig
from popcosmos_hpc.errors import ConfigurationError, LedgerError
from popcosmos_hpc.survey.catalog import SourceCatalog, plan_catalog
from popcosmos_hpc.survey.files import replace_atomically
from popcosmos_hpc.survey.photometry_store import remove_photometry, write_photometry
from popcosmos_hpc.survey.plan import Plan
from popcosmos_hpc.survey.preset import load_preset

logger = logging.getLogger(__name__)
_INPUT_FILE = "input.json"


def plan_run(config: RunConfig, run_dir: Path) -> Plan:
    """Make a run directory ready for `fit`; a second call with the same settings finishes or confirms it.

    Args:
        config: settings.
        run_dir: folder to make.

    Raises:
        ConfigurationError: settings that do not fit each other, the survey or the bundle.
        SchemaError: the catalog cannot be used.
        BundleError: the bundle cannot be used.
        LedgerError: the folder holds a run with other settings.
    """
    config = _absolute(config)
    preset, catalog = load_preset(config.survey), None
    catalog = SourceCatalog(config.input.path, preset)
    bundle, bands = _check_model(config, catalog.bands)
    run_dir.mkdir(parents=True, exist_ok=True)
    if (run_dir / "fingerprint.json").exists():
        plan = Plan.read(run_dir / PLAN_FILE)
        prints.compare(
            prints.read_fingerprint(run_dir), _fingerprint(config, run_dir, plan, bundle, bands), str(run_dir)
        )
        return plan
    # An attempt that was cut short may have read another catalog, or this one before it changed.
    remove_photometry(run_dir)
    plan = plan_catalog(
        catalog,
        max_rows=config.partition.max_rows,
        highest_order=config.partition.highest_order,
        block_size=config.block.size,
        rejects=run_dir / "rejects.parquet" if catalog.preset is not None else None,
    )
    plan.write(run_dir / PLAN_FILE)
    write_photometry(run_dir, config.input.path, plan, preset)
    check_depth(run_dir, config, plan)
    with replace_atomically(run_dir / RUN_FILE) as partial:
        partial.write_text(yaml.safe_dump(config.resolved(), sort_keys=False), encoding="utf-8")
    # Written last: it marks the run as ready.
    prints.write_fingerprint(run_dir, _fingerprint(config, run_dir, plan, bundle, bands))
    log_event(run_dir, "planned", partitions=len(plan.partitions), blocks=len(plan.blocks()))
    return plan


def check_run(run_dir: Path, accept_code_change: bool = False) -> tuple[RunConfig, Plan]:
    """Settings and plan of a run, after everything its results depend on was found unchanged.

    Args:
        run_dir: run directory.
        accept_code_change: take other source code of the numerical rooms as equivalent, and say so in
            fingerprint and events.

    Raises:
        LedgerError: names what changed, with both values.
    """
    from popcosmos_hpc.model.bundle import load_bundle

    stored = prints.read_fingerprint(run_dir)
    config, plan = read_run(run_dir), Plan.read(run_dir / PLAN_FILE)
    bundle = load_bundle(config.model.bundle)
    current = _fingerprint(config, run_dir, plan, bundle, tuple(stored.get("bands", ())))
    if accept_code_change and stored.get("code") != current["code"]:
        log_event(run_dir, "code_change_accepted", before=stored.get("code"), after=current["code"])
        stored = {**stored, "code": current["code"]}
        prints.compare(stored, current, str(run_dir))
        prints.write_fingerprint(run_dir, stored)
    prints.compare(stored, current, str(run_dir))
    return config, plan


def _absolute(config: RunConfig) -> RunConfig:
    """Settings that mean the same from any working directory."""
    changes: dict[str, Any] = {
        "input": config.input.model_copy(update={"path": str(Path(config.input.path).resolve())})
    }
    named = {"bundle": config.model.bundle, "prior": config.model.prior}
    folders = {key: str(Path(name).resolve()) for key, name in named.items() if Path(name).is_dir()}
    if folders:
        changes["model"] = config.model.model_copy(update=folders)
    named = {key: str(config.sampler.settings.get(key) or "") for key in ("pool", "amplitude")}
    folders = {key: str(Path(name).resolve()) for key, name in named.items() if name and Path(name).is_dir()}
    if folders:
        changes["sampler"] = config.sampler.model_copy(update=folders)
    if Path(config.survey).is_file():
        changes["survey"] = str(Path(config.survey).resolve())
    return config.model_copy(update=changes)


def _check_model(config: RunConfig, survey_bands: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
    """The bundle and the bands to fit, once model and sampler have been seen to build."""
    from popcosmos_hpc.model.bundle import load_bundle

    bundle = load_bundle(config.model.bundle)
    bands = config.model.bands or tuple(band for band in bundle.bands if band in survey_bands)
    missing = [band for band in bands if band not in survey_bands or band not in bundle.bands]
    if missing or not bands:
        raise ConfigurationError(
            f"bands that both survey ({', '.join(survey_bands)}) and bundle ({', '.join(bundle.bands)}) have",
            ", ".join(missing) or "none in common",
            "model.bands",
            "Choose another bundle, or bands of both.",
        )
    if unused := [band for band in survey_bands if band not in bands]:
        logger.warning("bands of the survey that are not fitted: %s", ", ".join(unused))
    most = check_sampler(config, bundle, bands)
    check_audit(config)
    if config.output.draws > most:
        raise ConfigurationError(
            f"at most {most} draws, as many as the sampler has",
            str(config.output.draws),
            "output.draws",
            "Ask for fewer, or raise the sampler's particles.",
        )
    build_model(config.model, bundle, bands)
    return bundle, bands


def _fingerprint(config: RunConfig, run_dir: Path, plan: Plan, bundle: Any, bands: tuple[str, ...]) -> dict:
    partitions = [[part.order, part.pixel, part.n_galaxies] for part in plan.partitions]
    return {
        **{f"config.{key}": value for key, value in config.science().items()},
        "bands": list(bands),
        "plan": prints.digest_of([plan.block_size, partitions]),
        "weights": bundle.sha256,
        **({"prior": population} if (population := prior_hash(config.model)) else {}),
        **({"pool": pool} if (pool := pool_hash(config)) else {}),
        "code": prints.code_version(),
        "input": _input_hash(Path(config.input.path), run_dir),
    }


def _input_hash(catalog: Path, run_dir: Path) -> str:
    """Hash of the catalog's files; files whose size and time are those of the last look are not read."""
    memory = run_dir / _INPUT_FILE
    known = json.loads(memory.read_text(encoding="utf-8")) if memory.exists() else {}
    if not catalog.is_dir():
        if not known:
            raise LedgerError("the input catalog", "no such folder", str(catalog), "Restore the catalog.")
        logger.warning("the input catalog %s is gone; going on with the photometry of the run", catalog)
        return _digest(known)
    found = prints.hash_folder(catalog, known)
    if found != known:
        with replace_atomically(memory) as partial:
            partial.write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8")
    return _digest(found)


def _digest(files: dict[str, Any]) -> str:
    return prints.digest_of({name: facts["sha256"] for name, facts in files.items()})
