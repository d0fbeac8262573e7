"""Settings of any kind from YAML: found by path or name, checked by a model, refused in plain words."""

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from popcosmos_hpc.errors import ConfigurationError

_PACKAGE = Path(__file__).resolve().parent
_ROOTS = (_PACKAGE.parent / "configs", _PACKAGE / "configs")


class Section(BaseModel):
    """A part of the configuration: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)


SectionType = TypeVar("SectionType", bound=Section)


def find_config(kind: str, name: str | Path) -> Path:
    """Path of a configuration file.

    Args:
        kind: folder under configs/, such as `runs` or `clusters`.
        name: a path to a YAML file, or the name of a shipped one.

    Raises:
        ConfigurationError: neither exists.
    """
    path = Path(name)
    if path.is_file():
        return path
    for root in _ROOTS:
        shipped = root / kind / f"{name}.yaml"
        if shipped.is_file():
            return shipped
    known = sorted({file.stem for root in _ROOTS for file in (root / kind).glob("*.yaml")})
    raise ConfigurationError(
        f"a YAML file, or one of the shipped {kind}: {', '.join(known) or 'none'}",
        repr(str(name)),
        action=_did_you_mean(str(name), known) or "Give the path of a file or the name of a shipped one.",
    )


def load_settings(model: type[SectionType], kind: str, path_or_name: str | Path) -> SectionType:
    """Read and check a configuration file of a given kind; arguments as for `find_config`.

    Raises:
        ConfigurationError: as for `parse_settings`, or the file is missing or not YAML.
    """
    path = find_config(kind, path_or_name)
    return parse_settings(model, read_yaml(path), str(path))


def parse_settings(model: type[SectionType], settings: Any, where: str) -> SectionType:
    """Check settings of any kind that were read from `where`.

    Raises:
        ConfigurationError: a key is unknown (the nearest legal one is named); a value is of the wrong type,
            out of range, or contradicts another.
    """
    if not isinstance(settings, dict):
        raise ConfigurationError("a mapping of settings", type(settings).__name__, where)
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise _explain(error, where, model) from error


def read_yaml(path: Path) -> Any:
    """Content of a YAML file."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError("a YAML file", " ".join(str(error).split()), str(path)) from error


def _explain(error: ValidationError, where: str, model: type[Section]) -> ConfigurationError:
    """The first mistake, in the words of this package; the number of further ones."""
    details = error.errors()
    first = details[0]
    place = f"{where}: {'.'.join(map(str, first['loc'])) or 'settings'}"
    more = f" ({len(details) - 1} more after this one)" if len(details) > 1 else ""
    key = str(first["loc"][-1]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        legal = sorted(_fields_at(model, first["loc"][:-1]))
        return ConfigurationError(
            f"one of the keys {', '.join(legal)}",
            f"the unknown key {key!r}",
            place,
            _did_you_mean(key, legal) + more,
        )
    if first["type"] == "missing":
        return ConfigurationError(f"the required key {key!r}", "nothing", place, f"Add it.{more}")
    expected = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return ConfigurationError(expected, f"{first['input']!r}"[:200], place, f"Correct the value.{more}")


def _fields_at(model: Any, location: tuple) -> list[str]:
    for key in location:
        fields = getattr(model, "model_fields", {})
        model = fields[key].annotation if key in fields else model
        # Of a list of sections, or of one that may be absent, the section.
        model = next((part for part in get_args(model) if hasattr(part, "model_fields")), model)
    return list(getattr(model, "model_fields", {}))


def _did_you_mean(name: str, legal: list[str]) -> str:
    near = difflib.get_close_matches(name, legal, n=1, cutoff=0.4)
    return f"Did you mean {near[0]!r}?" if near else ""
