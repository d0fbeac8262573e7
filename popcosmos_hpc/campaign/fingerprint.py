"""What a run's results depend on, hashed: a resumed run must find every part unchanged."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import popcosmos_hpc
from popcosmos_hpc.errors import LedgerError

# Rooms whose source decides the numbers; the others move them around.
_NUMERICAL = ("sps", "model", "inference", "survey/rounding.py", "parameters.py", "photometry.py")
_NAME = "fingerprint.json"
_CURE = "Restore it, or plan a new run."


def code_version() -> str:
    """Version of the package and a hash of the source that decides the numbers."""
    root, digest = Path(popcosmos_hpc.__file__).parent, hashlib.sha256()
    for name in _NUMERICAL:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return f"{popcosmos_hpc.__version__}+{digest.hexdigest()[:12]}"


def hash_folder(folder: Path, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Size, time and sha256 of every file below `folder`.

    Args:
        folder: a catalog.
        known: an earlier answer; files whose size and time have not changed are not read again.

    Returns:
        Records by relative path: {"size": bytes, "mtime_ns": int, "sha256": hex}.
    """
    known, found = known or {}, {}
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        name, facts = path.relative_to(folder).as_posix(), path.stat()
        seen = known.get(name, {})
        if (seen.get("size"), seen.get("mtime_ns")) == (facts.st_size, facts.st_mtime_ns):
            found[name] = seen
            continue
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        found[name] = {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns, "sha256": digest}
    return found


def digest_of(value: Any) -> str:
    """sha256 of a JSON-ready value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def short_hash(fingerprint: dict[str, Any]) -> str:
    """Sixteen digits that name a fingerprint; they go into every record."""
    return digest_of(fingerprint)[:16]


def write_fingerprint(run_dir: Path, fingerprint: dict[str, Any]) -> None:
    """Store the fingerprint, durably and as a whole."""
    path = run_dir / _NAME
    temporary = path.with_name(f".{_NAME}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(fingerprint, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def read_fingerprint(run_dir: Path) -> dict[str, Any]:
    """The stored fingerprint.

    Raises:
        LedgerError: there is none, or it is damaged.
    """
    path = run_dir / _NAME
    if not path.exists():
        raise LedgerError(
            "a planned run directory", "no fingerprint.json", str(run_dir), "Run `popcosmos-hpc plan` first."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise LedgerError("a JSON file", "other content", str(path), _CURE) from error
    if not isinstance(content, dict):
        raise LedgerError("a JSON mapping", type(content).__name__, str(path), _CURE)
    return content


def compare(stored: dict[str, Any], current: dict[str, Any], where: str) -> None:
    """Refuse a run whose parts have changed.

    Raises:
        LedgerError: names every field that differs, with both values.
    """
    absent = "(absent)"
    differing = [
        f"{name}: {stored.get(name, absent)!r} in the run, {current.get(name, absent)!r} now"
        for name in sorted({*stored, *current})
        if stored.get(name, absent) != current.get(name, absent)
    ]
    if not differing:
        return
    only_code = all(line.startswith("code") for line in differing)
    action = "Restore the old value, or start a new run directory."
    if only_code:
        action += " If the new code gives the same numbers, `fit --accept-code-change` goes on."
    raise LedgerError("the run's fingerprint unchanged", "; ".join(differing), where, action)
