"""What happened, for people and for `status`: one append-only file of JSON lines per writer."""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def log_event(run_dir: Path, event: str, **facts: Any) -> None:
    """Append one event to this process's file under `events/`; a failure to write is only logged.

    Args:
        run_dir: run directory.
        event: what happened, in a word or two joined by underscores.
        **facts: JSON-ready details.
    """
    line = json.dumps({"time": time.time(), "event": event, **facts}) + "\n"
    path = run_dir / "events" / f"{socket.gethostname()}-{os.getpid()}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(line)
    except OSError as error:  # a full disk must not turn a note into a failure
        logger.warning("event %s not written to %s: %s", event, path, error)


def read_events(run_dir: Path) -> Iterator[dict[str, Any]]:
    """All events, file by file; a line cut short by a kill is skipped."""
    for path in sorted((run_dir / "events").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
