"""The cache of compiled programs that processes share, kept free of entries that a kill cut short.

JAX writes an entry in place and never replaces one: a process killed while it writes would leave every later
process to warn and to compile again, for ever.
"""

import contextlib
import importlib
import logging
import os
import zlib
from pathlib import Path

logger = logging.getLogger(__name__)
_MARK = ".checked"
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


def cache_folder() -> Path:
    """Where compiled programs are kept: JAX's own variable, or the user's cache."""
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(named) if named else Path(root) / "popcosmos_hpc" / "xla"


def remove_damaged_entries(folder: Path | None = None) -> int:
    """Delete entries that are cut short; those older than the last look are not read again.

    Args:
        folder: the cache; `cache_folder()` if None.

    Returns:
        How many were deleted.
    """
    folder = folder or cache_folder()
    mark, removed = folder / _MARK, 0
    try:
        looked = mark.stat().st_mtime_ns if mark.exists() else 0
        for path in folder.glob("*-cache"):
            # An entry still being written when last looked at is looked at again.
            if path.stat().st_mtime_ns >= looked - 60_000_000_000 and not _is_whole(path.read_bytes()):
                path.unlink(missing_ok=True)
                removed += 1
        if folder.is_dir():
            mark.touch()
    except OSError as error:  # the cache only saves time
        logger.debug("compilation cache %s not checked: %s", folder, error)
    return removed


def _is_whole(content: bytes) -> bool:
    """Whether a compressed stream reaches its end; True if its compression is unknown."""
    if content.startswith(_ZSTANDARD):
        with contextlib.suppress(ImportError):
            zstandard = importlib.import_module("zstandard")
            stream = zstandard.ZstdDecompressor().decompressobj()
            return _ends(stream, content, zstandard.ZstdError)
        return True
    if content and content[0] != 0x78:
        return True
    return _ends(zlib.decompressobj(), content, zlib.error)


def _ends(stream, content: bytes, damage: type[Exception]) -> bool:
    try:
        stream.decompress(content)
    except damage:
        return False
    return bool(stream.eof)
