"""The ladder of a run, from its settings and a pool on disk."""

from dataclasses import fields
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from popcosmos_hpc.config import RunConfig
from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.settings import Section, parse_settings


class LadderSettings(Section):
    """Settings of `sampler: {name: ladder}`.

    Attributes:
        pool: folder of a pool that `pool build` made.
        picks: draws that are weighed on the first rung, on the second, and so on.
        amplitude: amplitude student of the prior, by name or folder; N is drawn anew on a rung of its own,
            and integrated out of SMC. None leaves the rung out.
        amplitude_picks: draws that are weighed on that rung.
        smc: settings of tempered SMC; false leaves it out.
        doublings: further rungs of SMC with twice the particles of the one before, for galaxies whose
            ensembles do not agree.
        ess_min: smallest effective size of a galaxy certified from the pool.
        max_weight: largest weight of one draw.
        pareto_k_max: largest tail index of the weights.
        evidence_error_max: largest error of ln Z, from sub-pools.
        distinct_min: fewest different draws among those stored.
    """

    pool: str
    picks: tuple[Annotated[int, Field(ge=1024)], ...] = Field(default=(16384, 131072), min_length=1)
    amplitude: str | None = None
    amplitude_picks: int = Field(default=32768, ge=4096)
    smc: dict[str, float] | bool = True
    doublings: int = Field(default=1, ge=0, le=4)
    ess_min: float = Field(default=200.0, ge=50.0)
    max_weight: float = Field(default=0.05, gt=0, le=1)
    pareto_k_max: float = Field(default=0.7, gt=0, le=1)
    evidence_error_max: float = Field(default=0.15, gt=0)
    distinct_min: int = Field(default=100, ge=1)


def ladder_settings(config: RunConfig) -> LadderSettings:
    """The settings of a run whose sampler is the ladder.

    Raises:
        ConfigurationError: a setting is missing, unknown or out of range.
    """
    return parse_settings(LadderSettings, config.sampler.settings, "sampler ladder")


def build_ladder(config: RunConfig, store: Any) -> Any:
    """The ladder of a run.

    Args:
        config: of the run.
        store: its pool, opened.
    """
    from popcosmos_hpc.inference.ladder import Ladder, Rung
    from popcosmos_hpc.inference.pool import PoolSampler, pool_on_device

    settings, pool = ladder_settings(config), pool_on_device(store)
    thresholds = settings.model_dump(
        include={"ess_min", "max_weight", "pareto_k_max", "evidence_error_max", "distinct_min"}
    )
    rungs = [
        Rung(f"pool {n_picks}", PoolSampler(pool, n_picks=n_picks, **thresholds))
        for n_picks in settings.picks
    ]
    student = None
    if settings.amplitude is not None:
        from popcosmos_hpc.inference.amplitude import AmplitudeSampler
        from popcosmos_hpc.model.student_bundle import load_amplitude

        student = load_amplitude(settings.amplitude, "conditional", config.model.prior)
        sampler = AmplitudeSampler(pool, n_picks=settings.amplitude_picks, conditional=student, **thresholds)
        rungs.append(Rung("amplitude", sampler))
    if settings.smc is not False:
        rungs.extend(_smc_rungs(settings, pool, student))
    return Ladder(tuple(rungs))


def _smc_rungs(settings: LadderSettings, pool: Any, student: Any) -> list[Any]:
    """SMC, and again with twice as many particles; N is integrated out if there is a student."""
    from popcosmos_hpc.inference.ladder import Rung
    from popcosmos_hpc.inference.marginal import MarginalSMC
    from popcosmos_hpc.inference.pool_start import PoolSMC

    kind = PoolSMC if student is None else partial(MarginalSMC, conditional=student)
    given = _smc_settings(settings)
    n_particles = given.pop("n_particles", PoolSMC.n_particles)
    sizes = [n_particles << doubling for doubling in range(settings.doublings + 1)]
    return [
        Rung("smc" if size == n_particles else f"smc {size}", kind(pool=pool, n_particles=size, **given))
        for size in sizes
    ]


def check_ladder(config: RunConfig) -> int:
    """Check the settings of a ladder without reading its pool.

    Returns:
        the most draws that every rung can return.

    Raises:
        ConfigurationError: a setting is unknown or out of range.
        BundleError: the amplitude student is missing, another prior's, or not accurate enough.
    """
    from popcosmos_hpc.inference.pool_start import PoolSMC, check_shares
    from popcosmos_hpc.inference.smc import SMC

    settings = ladder_settings(config)
    limits = list(settings.picks)
    if settings.amplitude is not None:
        from popcosmos_hpc.inference.amplitude import AmplitudeSampler
        from popcosmos_hpc.model.student_bundle import load_amplitude

        load_amplitude(settings.amplitude, "conditional", config.model.prior)
        limits.append(AmplitudeSampler.n_values)
    if settings.smc is not False:
        given = _smc_settings(settings)
        own = SMC(**{field.name: given[field.name] for field in fields(SMC) if field.name in given})
        check_shares(given.get("n_picks", PoolSMC.n_picks), own.n_ensembles)
        limits.append(own.max_draws)
    return min(limits)


def _smc_settings(settings: LadderSettings) -> dict[str, Any]:
    """Whole numbers as integers, names checked."""
    from popcosmos_hpc.inference.pool_start import PoolSMC
    from popcosmos_hpc.inference.sampler import checked_settings

    own = settings.smc if isinstance(settings.smc, dict) else {}
    return checked_settings(PoolSMC, "smc of a ladder", own)


def check_pool(store: Any, bands: tuple[str, ...], bundle: str, prior: str, where: str) -> None:
    """Refuse a pool that was not made for this model.

    Args:
        store: the opened pool.
        bands: of the run, in order.
        bundle: sha256 of the photometry bundle.
        prior: sha256 of the population bundle, or the name of a built-in prior.
        where: for the message.

    Raises:
        ConfigurationError: bands, bundle or prior differ.
    """
    build = "Build a pool for this model: `popcosmos-hpc pool build`."
    if store.bands != tuple(bands):
        raise ConfigurationError(
            f"a pool of the bands {', '.join(bands)}, in this order", ", ".join(store.bands), where, build
        )
    for name, wanted in (("bundle", bundle), ("prior", prior)):
        if (found := store.manifest["identity"][name]) != wanted:
            raise ConfigurationError(f"a pool of the {name} {wanted}", found, where, build)
