"""What all recipes share: how their files are read, and the versions that made a bundle."""

import platform
from pathlib import Path
from typing import TypeVar

import jax
import yaml
from pydantic import BaseModel, ValidationError

import popcosmos_hpc
from popcosmos_hpc.errors import ConfigurationError

_ACTION = "Compare it with those in configs/training."

Recipe = TypeVar("Recipe", bound=BaseModel)


def read_recipe(path: Path | str, model: type[Recipe], verb: str) -> Recipe:
    """Read a recipe from its YAML file.

    Args:
        path: the file.
        model: what it must say.
        verb: for messages: the verb that needs it.

    Raises:
        ConfigurationError: the file is missing, no YAML mapping, or says something unknown.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError("a training configuration", f"no file {path}", verb, "Correct the path.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return model.model_validate(content)
    except (ValidationError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"a valid configuration for `{verb}`", str(error), str(path), _ACTION
        ) from error
    raise ConfigurationError(
        f"a configuration for `{verb}`, lines of `key: value`", type(content).__name__, str(path), _ACTION
    )


def software() -> dict[str, str]:
    """Versions of what decides the numbers in a bundle."""
    return {
        "popcosmos_hpc": popcosmos_hpc.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
