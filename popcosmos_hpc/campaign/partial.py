"""Folders that appear as a whole: until then they grow beside their place, and can be gone on with."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.survey.files import replace_atomically

logger = logging.getLogger(__name__)
_MARK = "fingerprint.json"


def new_folder(path: str | Path) -> Path:
    """Absolute path of a folder that is to be made.

    Raises:
        ConfigurationError: it exists and holds something.
    """
    out = Path(path).absolute()
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise ConfigurationError("a new folder", "one with content", str(out), "Name another, or remove it.")
    return out


def open_partial(out: Path, identity: dict[str, Any]) -> Path:
    """The folder in which `out` grows: an earlier attempt's, if it was to hold the same.

    Args:
        out: the folder to be.
        identity: what it will hold; JSON values.

    Raises:
        ConfigurationError: its place is taken by other files.
    """
    scratch = out.with_name(f".{out.name}.partial")
    mark = scratch / _MARK
    if scratch.exists():
        if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == identity:
            logger.info("going on with %s", scratch)
            return scratch
        if not mark.is_file() and any(scratch.iterdir()):
            raise ConfigurationError("an unfinished attempt", "other files", str(scratch), "Remove it.")
        logger.info("%s is of other settings or code: starting anew", scratch)
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True)
    with replace_atomically(mark) as partial:
        partial.write_text(json.dumps(identity, indent=1, sort_keys=True), encoding="utf-8")
    return scratch


def finish_partial(scratch: Path, out: Path) -> None:
    """Give a finished folder its place."""
    (scratch / _MARK).unlink()
    if out.exists():
        out.rmdir()
    scratch.rename(out)
