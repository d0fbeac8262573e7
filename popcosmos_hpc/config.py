"""Run configuration: YAML in, frozen models out; every mistake is refused before any work starts."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from popcosmos_hpc.settings import Section, find_config, load_settings, parse_settings, read_yaml


def _in_unit(unit: str):
    """Parser of quantities such as '30 s', returning the number in `unit`."""

    def parse(value: Any) -> float:
        from astropy import units  # slow to import, and most settings have no unit

        if not isinstance(value, str):
            raise ValueError(f"a quantity with its unit, such as '10 {unit}'")
        try:
            number: Any = units.Quantity(value).to_value(unit)
        except (TypeError, ValueError, units.UnitConversionError) as error:
            raise ValueError(f"a quantity in units of {unit}, such as '10 {unit}'") from error
        return float(number)

    return parse


def _with_unit(unit: str) -> PlainSerializer:
    return PlainSerializer(lambda value: f"{value:g} {unit}", return_type=str, when_used="unless-none")


Seconds = Annotated[float, BeforeValidator(_in_unit("s")), _with_unit("s")]
Gigabytes = Annotated[float, BeforeValidator(_in_unit("GB")), _with_unit("GB")]


class InputConfig(Section):
    """The catalog to fit.

    Attributes:
        path: HATS catalog that `ingest` wrote; relative to the working directory.
        format: only `hats`; other tables go through `ingest` first.
    """

    path: str
    format: Literal["hats"] = "hats"


class PartitionConfig(Section):
    """Units of storage: HEALPix pixels of at most `max_rows` galaxies, no finer than `highest_order`."""

    max_rows: int = Field(default=100_000, ge=1)
    highest_order: int = Field(default=8, ge=0, le=13)


class BlockConfig(Section):
    """Unit of work and of commit: galaxies per block."""

    size: int = Field(default=512, ge=1)


class LikelihoodConfig(Section):
    """Noise model.

    Attributes:
        family: `student_t` (the reference) or `gaussian`.
        nu: degrees of freedom of the Student t; 2 if not given.
        error_floor: fraction of the flux added to its error in quadrature; a number, or one per band.
        zero_points: factor on the model flux per band; bands not named have 1.
    """

    family: Literal["student_t", "gaussian"] = "student_t"
    nu: float | None = Field(default=None, gt=0)
    error_floor: float | dict[str, float] = 0.03
    zero_points: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self):
        if self.family == "gaussian" and self.nu is not None:
            raise ValueError("no nu with family gaussian (nu belongs to student_t; remove one of the two)")
        floors = self.error_floor.values() if isinstance(self.error_floor, dict) else [self.error_floor]
        if any(not 0 <= floor < 1 for floor in floors):
            raise ValueError("an error_floor that is a fraction of the flux, from 0 to below 1")
        if any(not factor > 0 for factor in self.zero_points.values()):
            raise ValueError("positive zero_points: they multiply the model flux (1 changes nothing)")
        return self


class ModelConfig(Section):
    """The statistical model.

    Attributes:
        bundle: name of a shipped bundle, or a folder with manifest.json and weights.safetensors.
        prior: `analytic` or `gaussian`, if the bundle can build it, or a population bundle: the name of a
            shipped one, or a folder.
        bands: bands to fit; all that survey and bundle share if not given.
        use_redshift: take a known redshift as a datum.
        likelihood: noise model.
    """

    bundle: str
    prior: str = "analytic"
    bands: tuple[str, ...] | None = None
    use_redshift: bool = False
    likelihood: LikelihoodConfig = LikelihoodConfig()

    @model_validator(mode="after")
    def _consistent(self):
        if self.bands is None:
            return self
        if not self.bands or len(set(self.bands)) != len(self.bands):
            raise ValueError("bands to be a list without repeats, of at least one band")
        floor = self.likelihood.error_floor
        named = set(self.likelihood.zero_points) | (set(floor) if isinstance(floor, dict) else set())
        if strange := sorted(named - set(self.bands)):
            raise ValueError(f"zero_points and error_floor only for the bands listed; {strange} are not")
        return self


class SamplerConfig(BaseModel):
    """The sampler by name, its batch size, and its own settings (checked when it is built)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = "smc"
    batch_size: int = Field(default=16, ge=1)

    @property
    def settings(self) -> dict[str, Any]:
        """The sampler's own settings."""
        return dict(self.model_extra or {})


class OutputConfig(Section):
    """What is stored.

    Attributes:
        draws: per galaxy.
        keep_bits: mantissa bits kept of parameters (23 keeps all).
        by_reference: of draws that came from a pool as they are, keep rows of the pool and not parameters;
            the pool is then needed to read them.
    """

    draws: int = Field(default=200, ge=1)
    keep_bits: int = Field(default=10, ge=1, le=23)
    by_reference: bool = False


class ExecutorConfig(Section):
    """Where blocks run.

    Attributes:
        name: `serial` (in this process; the specification) or `local` (processes on this machine).
        workers: processes.
        threads_per_worker: threads that one process may use for arithmetic.
        window: blocks in flight per worker.
        memory: limit per worker, such as '4 GB'; none if not given.
    """

    name: Literal["serial", "local"] = "serial"
    workers: int = Field(default=1, ge=1)
    threads_per_worker: int = Field(default=1, ge=1)
    window: int = Field(default=3, ge=1, le=8)
    memory: Gigabytes | None = None

    @model_validator(mode="after")
    def _consistent(self):
        if self.name == "serial" and self.workers != 1:
            raise ValueError(f"one worker with the serial executor, not {self.workers} (use executor local)")
        return self


class RetryConfig(Section):
    """How failures are met.

    Attributes:
        attempts: failed attempts after which a block is set aside.
        stop_after_failed_blocks: blocks set aside in one run after which it stops.
        backoff: pause before the first retry after a storage error; doubled for each further one.
    """

    attempts: int = Field(default=3, ge=1)
    stop_after_failed_blocks: int = Field(default=10, ge=1)
    backoff: Seconds = 2.0


class AuditConfig(Section):
    """Galaxies that are fitted again by other samplers, to check the run's own.

    Attributes:
        fraction: of all galaxies, chosen at random by the run's seed and their identifiers.
        samplers: settings by name: `nuts`, `ensemble`, `smc`, or `exhaustive` for a run with a pool.
    """

    fraction: float = Field(default=0.0, ge=0, le=1)
    samplers: dict[str, dict[str, float]] = Field(default={"nuts": {}, "ensemble": {}}, min_length=1)


class RunConfig(Section):
    """A whole run. Fields that do not touch results: name, executor, retry, audit, input.path."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(default=1, ge=0, lt=2**32)
    survey: str
    input: InputConfig
    partition: PartitionConfig = PartitionConfig()
    block: BlockConfig = BlockConfig()
    model: ModelConfig
    sampler: SamplerConfig = SamplerConfig()
    output: OutputConfig = OutputConfig()
    executor: ExecutorConfig = ExecutorConfig()
    retry: RetryConfig = RetryConfig()
    audit: AuditConfig = AuditConfig()

    @field_validator("executor", mode="before")
    @classmethod
    def _named_executor(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, dict) and value.get("name") not in (None, "serial", "local"):
            path = find_config("clusters", str(value["name"]))
            settings = read_yaml(path)
            value = {**settings, **{key: item for key, item in value.items() if key != "name"}}
        return value

    @model_validator(mode="after")
    def _consistent(self):
        if self.output.by_reference and self.sampler.name != "ladder":
            raise ValueError("output.by_reference only with sampler.name ladder: its draws come from a pool")
        if self.sampler.batch_size > self.block.size:
            sizes = f"({self.sampler.batch_size} > {self.block.size})"
            raise ValueError(f"sampler.batch_size no larger than block.size {sizes}")
        return self

    def resolved(self) -> dict[str, Any]:
        """All settings, defaults included, ready for JSON and YAML."""
        return self.model_dump(mode="json")

    def science(self) -> dict[str, Any]:
        """The settings that results depend on, flattened to dotted names.

        >>> config = RunConfig(name="a", survey="s", input={"path": "c"}, model={"bundle": "b"})
        >>> config.science()["sampler.name"]
        'smc'
        """
        settings = self.resolved()
        for key in ("name", "executor", "retry", "audit", "input"):
            del settings[key]
        # Bundles and pools are known by their hashes, not by where they lie.
        del settings["model"]["bundle"]
        settings["sampler"].pop("pool", None)
        if settings["sampler"].get("amplitude") is not None:
            settings["sampler"]["amplitude"] = "student"
        if self.model.prior not in ("analytic", "gaussian"):
            settings["model"]["prior"] = "population"
        return _flatten(settings)

    def with_input(self, catalog: Path | None) -> "RunConfig":
        """The same settings for another catalog; themselves if it is None."""
        if catalog is None:
            return self
        return self.model_copy(update={"input": self.input.model_copy(update={"path": str(catalog)})})

    def hash(self) -> str:
        """sha256 of the settings that results depend on."""
        return hashlib.sha256(json.dumps(self.science(), sort_keys=True).encode()).hexdigest()


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def load_config(path_or_name: str | Path) -> RunConfig:
    """Read and check a run configuration.

    Raises:
        ConfigurationError: the file is missing or not YAML; a key is unknown (the nearest legal one is
            named); a value is of the wrong type, out of range, or contradicts another.
    """
    return load_settings(RunConfig, "runs", path_or_name)


def parse_config(settings: Any, where: str) -> RunConfig:
    """Check settings of a run that were read from `where`."""
    return parse_settings(RunConfig, settings, where)
