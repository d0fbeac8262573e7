"""How fast the run went, how it stopped and went on, and what it weighs on disk."""

from pathlib import Path

import numpy as np

from popcosmos_hpc.campaign.events import read_events
from popcosmos_hpc.campaign.ledger import BlockRecord
from popcosmos_hpc.report import figures
from popcosmos_hpc.report.figures import BLUE, GREY, ORANGE
from popcosmos_hpc.report.run_data import RunData
from popcosmos_hpc.report.section import Figure, Section, Table, Text, duration, number

_PAUSE = 60.0  # seconds without a block at work that count as a stop where no events tell


def throughput_section(run: RunData) -> Section:
    """Totals, galaxies over time, failures, and bytes per galaxy array by array."""
    blocks: list[Figure | Table | Text] = [_totals(run), _progress(run)]
    if run.failed:
        blocks.append(_failures(run))
    blocks.append(_sizes(run))
    return Section("throughput", "Throughput and size", tuple(blocks))


def sessions(records: list[BlockRecord], starts: list[float]) -> list[tuple[float, float]]:
    """Spans of wall time during which the run was at work [s since the epoch].

    Args:
        records: of finished blocks, at least one.
        starts: when sessions began; where none is known, blocks that follow each other closely make one.
    """
    spans: list[tuple[float, float]] = []
    for record in sorted(records, key=lambda record: record.time):
        began = [start for start in starts if start <= record.time]
        begin = max(began) if began else record.time - record.seconds
        joined = spans and (begin <= spans[-1][1] if began else begin <= spans[-1][1] + _PAUSE)
        if joined:
            spans[-1] = (spans[-1][0], record.time)
        else:
            spans.append((begin, record.time))
    return spans


def _totals(run: RunData) -> Table:
    status, records = run.status, list(run.done.values())
    work = sum(record.seconds for record in records)
    events: dict[str, int] = {}
    for event in read_events(run.run_dir):
        name = str(event.get("event", "?")).replace("_", " ")
        events[name] = events.get(name, 0) + 1
    rows = [
        ("galaxies fitted", f"{status.galaxies_done:,} of {status.n_galaxies:,}"),
        (
            "blocks done",
            f"{status.done:,} of {status.n_blocks:,}, in {len(run.plan.partitions):,} partitions",
        ),
        ("wall time of all sessions", duration(status.seconds_worked)),
        ("galaxies per second", number(status.galaxies_per_second)),
        ("work, summed over processes", duration(work)),
        ("milliseconds of work per galaxy", number(1000 * work / max(status.galaxies_done, 1))),
        ("hosts", ", ".join(sorted({record.host for record in records}))),
        ("events", ", ".join(f"{name} {count}x" for name, count in sorted(events.items())) or "none"),
    ]
    return Table(("", ""), tuple(rows))


def _progress(run: RunData) -> Figure:
    records = sorted(run.done.values(), key=lambda record: record.time)
    begun = [event["time"] for event in read_events(run.run_dir) if event.get("event") == "session_started"]
    spans = sessions(records, begun)
    starts, stops = (np.array(values) for values in zip(*spans, strict=True))
    passed = np.concatenate([[0.0], np.cumsum(stops - starts)])
    times = np.array([record.time for record in records])
    span = np.clip(np.searchsorted(starts, times, side="right") - 1, 0, len(spans) - 1)
    busy = passed[span] + times - starts[span]
    counts = np.cumsum([record.n_galaxies for record in records])
    unit, name = (
        (3600.0, "hours")
        if passed[-1] > 7200
        else (60.0, "minutes")
        if passed[-1] > 180
        else (1.0, "seconds")
    )
    with figures.canvas(7.0, 2.6) as figure:
        left, right = figure.subplots(1, 2)
        left.step(np.concatenate([[0], busy]) / unit, np.concatenate([[0], counts]), where="post", color=BLUE)
        for stop in passed[1:-1]:
            left.axvline(stop / unit, color=ORANGE, linewidth=0.6, linestyle=":")
        left.set(xlabel=f"{name} of wall time", ylabel="galaxies fitted", xlim=(0, None), ylim=(0, None))
        rates = [1000 * record.seconds / record.n_galaxies for record in records]
        right.scatter(busy / unit, rates, s=6, color=GREY, linewidths=0)
        right.set(
            xlabel=f"{name} of wall time", ylabel="ms of work per galaxy", xlim=(0, None), ylim=(0, None)
        )
        return figures.encode(
            figure,
            "Left: galaxies fitted against wall time; pauses between sessions are cut out (dotted). "
            "Right: each block's time per galaxy; the first block of a process also compiles.",
            "Galaxies fitted over time, and time per galaxy of each block.",
        )


def _failures(run: RunData) -> Table:
    rows = []
    for key, attempts in run.failed.items():
        state = "done later" if key in run.done else "not done"
        rows.append((key, str(len(attempts)), state, attempts[-1].error[:160]))
    caption = "Blocks of which an attempt failed, with the last error." + (
        " First twenty." if len(rows) > 20 else ""
    )
    return Table(("block", "failed attempts", "state", "last error"), tuple(rows[:20]), caption)


def _sizes(run: RunData) -> Table:
    rows, total = [], 0
    for name, size in sorted(array_sizes(run.run_dir, run).items(), key=lambda item: -item[1]):
        rows.append((name, f"{size:,}", number(size / max(run.status.galaxies_done, 1), 4)))
        total += size
    rows.append(("all", f"{total:,}", number(total / max(run.status.galaxies_done, 1), 4)))
    return Table(
        ("array", "bytes", "bytes per fitted galaxy"), tuple(rows), "On disk, compressed, metadata included."
    )


def array_sizes(run_dir: Path, run: RunData) -> dict[str, int]:
    """Bytes on disk of each array of the posterior stores, and of the run's other folders."""
    sizes: dict[str, int] = {}
    for partition in run.plan.partitions:
        store = run_dir / "posterior" / f"{partition.key}.zarr"
        for file in store.rglob("*"):
            if file.is_file():
                parts = file.relative_to(store).parts
                name = f"posterior: {parts[0]}" if len(parts) > 1 else "posterior: group metadata"
                sizes[name] = sizes.get(name, 0) + file.stat().st_size
    for folder in ("photometry", "ledger", "events", "catalog"):
        size = sum(file.stat().st_size for file in (run_dir / folder).rglob("*") if file.is_file())
        if size:
            sizes[folder] = size
    return sizes
