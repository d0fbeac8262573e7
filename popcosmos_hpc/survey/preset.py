"""SurveyPreset: what the columns of a survey's table mean, as one YAML file.

A preset turns a published table into canonical photometry: `object_id, ra, dec`, then per band `flux`,
`flux_err` (nanomaggies) and `state`, an optional known redshift, and the columns to be passed through.
Photometric zero points that a fit should solve for or apply are not here: they belong to the likelihood.
"""

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from popcosmos_hpc.errors import ConfigurationError, SchemaError
from popcosmos_hpc.survey import expression, fluxes

PassthroughType = Literal["float64", "float32", "int64", "int32", "int8", "bool", "string"]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Identifier(_Facts):
    """Column of the object id.

    `hash` folds text ids into 63 bits (the text itself can be passed through); of 10^8 ids two meet with
    probability 5e-4, and the second is then refused as a duplicate.
    """

    column: str
    hash: bool = False


class Extinction(_Facts):
    """Galactic extinction to be removed: a column of A_band [mag], or coefficient x E(B-V)."""

    column: str | None = None
    coefficient: float | None = None
    ebv: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Extinction":
        if (self.column is None) == (self.coefficient is None):
            raise ValueError("give either `column` (A_band) or `coefficient` (times E(B-V))")
        return self


class Band(_Facts):
    """One band's columns.

    Args:
        name: band name of the model bundle.
        filter: transmission curve, for people and for the bundle's check.
        flux: flux column (exclusive with `mag`).
        mag: magnitude column.
        err: 1 sigma column, in the unit of the flux or magnitude.
        unit: nanomaggies, maggies, nJy, uJy, ... , count (with `zero_point`), ABmag.
        zero_point: AB magnitude of one count.
        ab_offset: magnitude added to reach AB (for Vega magnitudes).
        flag: quality column; rows whose flag is not in `flag_ok` are missing in this band.
        flag_ok: good values of the flag.
        missing_values: codes for "not observed" in the value or error column; default the preset's.
        nondetection_values: codes for "not detected" in the value column; default the preset's.
        limit: column of the limit, in the unit of the band; without one the limit is `limit_sigma` x err
            (fluxes only).
        limit_sigma: how many sigma the limit is.
        extinction: Galactic extinction to be removed.
        softening: b of asinh magnitudes.
    """

    name: str
    filter: str = ""
    flux: str | None = None
    mag: str | None = None
    err: str
    unit: str | None = None
    zero_point: float | None = None
    ab_offset: float = 0.0
    flag: str | None = None
    flag_ok: tuple[float, ...] = (0.0,)
    missing_values: tuple[float, ...] | None = None
    nondetection_values: tuple[float, ...] | None = None
    limit: str | None = None
    limit_sigma: float = Field(default=1.0, gt=0)
    extinction: Extinction | None = None
    softening: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _flux_or_mag(self) -> "Band":
        if (self.flux is None) == (self.mag is None):
            raise ValueError(f"band {self.name}: give either `flux` or `mag`")
        if self.softening is not None and self.mag is None:
            raise ValueError(f"band {self.name}: `softening` belongs to asinh magnitudes")
        return self

    @property
    def value(self) -> str:
        """Column of the flux or magnitude."""
        return self.flux or self.mag or ""


class Redshift(_Facts):
    """A known redshift used as a datum; `quality` selects the rows where it is trusted."""

    column: str
    err: str | float = 0.0
    quality: str | None = None


class Passthrough(_Facts):
    """A column carried unchanged to the products; `column` may be a pattern such as `truth_*`."""

    name: str
    column: str
    type: PassthroughType = "float64"


class SurveyPreset(_Facts):
    """What the columns of a survey's table mean.

    Args:
        name: short name.
        description: one sentence.
        reference: paper or page of the columns.
        verified: whether the preset has been checked against a real table.
        id: id column, or `{column, hash}`.
        ra: right ascension [deg].
        dec: declination [deg].
        bands: the bands in order.
        unit: default unit of the bands' values and errors.
        missing_values: default codes for "not observed".
        nondetection_values: default codes for "not detected".
        ebv: E(B-V) column for bands whose extinction is a coefficient.
        already_dereddened: statement about the published values; extinction keys are then refused.
        bad_errors: what an observed value with an unusable error becomes: `observed`, so that the fit flags
            the galaxy, or `missing`.
        redshift: known redshift, if it shall be a datum.
        quality: selection of rows; others are written to the rejects.
        passthrough: columns carried to the products.
        hdf5_group: group of an HDF5 file that holds the columns.
        fits_hdu: extension of a FITS file; default the first table.
    """

    name: str
    description: str = ""
    reference: str = ""
    verified: bool = False
    id: Identifier
    ra: str
    dec: str
    bands: tuple[Band, ...] = Field(min_length=1)
    unit: str = "nanomaggies"
    missing_values: tuple[float, ...] = ()
    nondetection_values: tuple[float, ...] = ()
    ebv: str | None = None
    already_dereddened: bool = False
    bad_errors: Literal["observed", "missing"] = "observed"
    redshift: Redshift | None = None
    quality: str | None = None
    passthrough: tuple[Passthrough, ...] = ()
    hdf5_group: str | None = None
    fits_hdu: int | str | None = None

    @field_validator("id", mode="before")
    @classmethod
    def _plain_id(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @field_validator("passthrough", mode="before")
    @classmethod
    def _plain_passthrough(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return [{"name": name, "column": column} for name, column in value.items()]
        return [{"name": item, "column": item} if isinstance(item, str) else item for item in value]

    @model_validator(mode="after")
    def _consistent(self) -> "SurveyPreset":
        names = self.band_names
        if len(set(names)) != len(names):
            raise ValueError("band names repeat")
        for band in self.bands:
            where = f"preset {self.name}, band {band.name}"
            unit = self.unit_of(band)
            if band.flux is not None and fluxes.is_magnitude(unit):
                raise ValueError(f"band {band.name}: a flux column has unit {unit}; use `mag` or a flux unit")
            if band.flux is not None:
                fluxes.flux_factor(unit, band.zero_point, where)
            if band.extinction is not None and self.already_dereddened:
                raise ValueError(f"band {band.name}: extinction is given, yet already_dereddened is true")
            extinction = band.extinction
            if extinction and extinction.coefficient is not None and not (extinction.ebv or self.ebv):
                raise ValueError(f"band {band.name}: a coefficient needs an `ebv` column")
        for text in self._expressions:
            expression.parse(text, f"preset {self.name}")
        return self

    @property
    def _expressions(self) -> tuple[str, ...]:
        return tuple(t for t in (self.quality, self.redshift.quality if self.redshift else None) if t)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands in order."""
        return tuple(band.name for band in self.bands)

    def unit_of(self, band: Band) -> str:
        """Unit of a band's values and errors."""
        return band.unit or ("ABmag" if band.mag is not None else self.unit)

    @cached_property
    def column_units(self) -> dict[str, str]:
        """Every photometric or positional column with the unit the preset declares for it."""
        declared = {self.ra: "deg", self.dec: "deg"}
        for band in self.bands:
            for column in (band.value, band.err, band.limit):
                if column is not None:
                    declared[column] = self.unit_of(band)
        return declared

    def required_columns(self) -> tuple[str, ...]:
        """Columns that a table must have, patterns of passthrough columns left out."""
        names: list[str | None] = [self.id.column, self.ra, self.dec]
        for band in self.bands:
            extinction = band.extinction
            names += [band.value, band.err, band.flag, band.limit]
            if extinction is not None:
                names.append(extinction.column or extinction.ebv or self.ebv)
        if self.redshift is not None:
            names.append(self.redshift.column)
            names.append(self.redshift.err if isinstance(self.redshift.err, str) else None)
        for text in self._expressions:
            names += expression.column_names(text)
        names += [item.column for item in self.passthrough if "*" not in item.column]
        return tuple(dict.fromkeys(name for name in names if name))

    def resolve(self, available: Iterable[str]) -> "SurveyPreset":
        """The preset with passthrough patterns replaced by the matching columns of a table."""
        available = sorted(available)
        items = []
        for item in self.passthrough:
            matches = [c for c in available if fnmatchcase(c, item.column)] if "*" in item.column else None
            items += (
                [item]
                if matches is None
                else [Passthrough(name=c, column=c, type=item.type) for c in matches]
            )
        return self.model_copy(update={"passthrough": tuple({item.name: item for item in items}.values())})

    def check_table(self, columns: Mapping[str, str | None], where: str) -> None:
        """Refuse a table that lacks a column or writes another unit on it.

        Args:
            columns: the table's column names with the unit written in the file, None where none is.
            where: file, for the message.

        Raises:
            SchemaError: naming the column, and the nearest one of the table.
        """
        for name in self.required_columns():
            if name not in columns:
                hint = _nearest(name, columns)
                raise SchemaError(
                    f"column {name!r} (preset {self.name})",
                    f"no such column{hint}",
                    where,
                    "Correct the preset or the table.",
                )
        for name, declared in self.column_units.items():
            found = columns[name]
            if found and not _same_declared_unit(declared, found):
                raise SchemaError(
                    f"column {name!r} in {declared}",
                    f"unit {found!r} in the file",
                    where,
                    "Set `unit` in the preset to the file's.",
                )


def _same_declared_unit(declared: str, found: str) -> bool:
    if declared == "deg":
        return found.strip().lower() not in (
            "rad",
            "radian",
            "radians",
            "hourangle",
            "hour",
            "h",
            "arcsec",
            "arcmin",
        )
    return fluxes.same_unit(declared, found)


def _nearest(name: str, options: Iterable[str]) -> str:
    lowered = {option.lower(): option for option in options}
    match = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.4)
    return f" (nearest: {lowered[match[0]]!r})" if match else ""


def find_preset(name_or_path: str | Path) -> Path:
    """File of a preset: a path, or a name in configs/surveys of the checkout or of the package.

    Raises:
        ConfigurationError: no such file.
    """
    path = Path(name_or_path)
    package = Path(__file__).resolve().parents[1]
    folders = [package.parent / "configs" / "surveys", package / "configs" / "surveys"]
    for candidate in [path, *(folder / f"{name_or_path}.yaml" for folder in folders)]:
        if candidate.is_file():
            return candidate
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    raise ConfigurationError(
        "a preset file or one of " + ", ".join(known),
        f"{str(name_or_path)!r}{_nearest(path.stem, known)}",
        "survey",
    )


def load_preset(name_or_path: str | Path) -> SurveyPreset:
    """Read and check a preset.

    Raises:
        ConfigurationError: the file is missing or no YAML mapping, a key is unknown (the nearest legal one is
            named), a value is illegal, or a unit does not parse.
    """
    path = find_preset(name_or_path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigurationError("a YAML file", str(error), str(path)) from error
    if not isinstance(content, dict):
        raise ConfigurationError("a YAML mapping", type(content).__name__, str(path))
    return preset_from_dict(content, str(path))


def preset_from_dict(content: Mapping[str, Any], where: str = "preset") -> SurveyPreset:
    """Build a preset from a mapping; errors as `load_preset`."""
    try:
        return SurveyPreset.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = f"{where}: {'.'.join(str(part) for part in first['loc'])}"
        if first["type"] == "extra_forbidden":
            key = str(first["loc"][-1])
            raise ConfigurationError(
                "a known key", f"{key!r}{_nearest(key, _legal_keys(first['loc']))}", place
            ) from error
        raise ConfigurationError(
            first["msg"].removeprefix("Value error, "), repr(first["input"])[:80], place
        ) from error


def _legal_keys(location: tuple) -> list[str]:
    nested = {
        "bands": Band,
        "extinction": Extinction,
        "redshift": Redshift,
        "passthrough": Passthrough,
        "id": Identifier,
    }
    parents = [part for part in location[:-1] if part in nested]
    model = nested[parents[-1]] if parents else SurveyPreset
    return list(model.model_fields)
