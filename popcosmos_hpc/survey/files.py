"""Writing so that a killed process leaves the old state or the new one, never a torn file."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush a folder and everything below it to the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on success it is flushed and renamed to `path`, on failure removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)
