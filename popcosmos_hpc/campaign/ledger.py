"""What is done: one record per block, published exactly once, and never a file that says "running".

A block's shards are written to `scratch/<key>.<token>/` and forced to disk. Its record, which names token,
shards and hashes, is then published by a hard link, which fails where a record exists: of two writers
of one block exactly one wins. The winner renames its shards into place; a resumed run finishes renames
that were cut short. Truth is the record: resume = plan - records.
"""

import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from popcosmos_hpc.errors import LedgerError
from popcosmos_hpc.partition import Block, Partition

FOLDED = "blocks.json"
_DAMAGED = "Restore the file from a backup, or delete it: its block is then fitted again."


@dataclass(frozen=True)
class Shard:
    """One file of a block.

    Args:
        path: where it belongs, relative to the run directory.
        sha256: hash of its bytes.
        nbytes: its size in bytes.
    """

    path: str
    sha256: str
    nbytes: int


@dataclass(frozen=True)
class BlockRecord:
    """The fact that a block is done, or that one attempt at it failed.

    Args:
        key: `Block.key`.
        state: `done` or `failed`.
        attempt: which attempt this was, from 1.
        fingerprint: short hash of the run's fingerprint.
        n_galaxies: galaxies in the block.
        n_flagged: galaxies whose status is not OK.
        seconds: wall time of the attempt.
        host: machine that made it.
        error: message of the failure, with its type; empty if done.
        error_class: how the failure is met, see `retry.ErrorClass`; empty if done.
        token: name of the attempt.
        shards: files of the block.
        time: seconds since the epoch at the end of the attempt.
        sha256: hash of all other fields, against damage.
    """

    key: str
    state: Literal["done", "failed"]
    attempt: int
    fingerprint: str
    n_galaxies: int
    n_flagged: int = 0
    seconds: float = 0.0
    host: str = ""
    error: str = ""
    error_class: str = ""
    token: str = ""
    shards: tuple[Shard, ...] = ()
    time: float = field(default_factory=time.time)
    sha256: str = ""

    def sealed(self) -> "BlockRecord":
        """The record with its own hash filled in."""
        return replace(self, sha256=self._digest())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Any, where: Path) -> "BlockRecord":
        """Inverse of `to_dict`.

        Raises:
            LedgerError: a field is missing or unknown, or the hash does not fit.
        """
        expected = {item.name for item in fields(cls)}
        if not isinstance(settings, dict) or set(settings) != expected:
            raise LedgerError("a block record", "other content", str(where), _DAMAGED)
        try:
            shards = tuple(Shard(**shard) for shard in settings["shards"])
        except TypeError as error:
            raise LedgerError("a list of shards", "other content", str(where), _DAMAGED) from error
        record = cls(**{**settings, "shards": shards})
        if record.sha256 != record._digest():
            raise LedgerError(f"sha256 {record._digest()}", str(record.sha256), str(where), _DAMAGED)
        return record

    def _digest(self) -> str:
        content = {key: value for key, value in asdict(self).items() if key != "sha256"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def new_token() -> str:
    """Name of an attempt: host, process and chance."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


@dataclass(frozen=True)
class Ledger:
    """The records of one run directory."""

    run_dir: Path

    # ---- paths

    def scratch(self, block: Block, token: str) -> Path:
        """Folder of one attempt."""
        return self.run_dir / "scratch" / f"{block.key}.{token}"

    def _folder(self, partition: Partition) -> Path:
        return self.run_dir / "ledger" / partition.key

    def _record_path(self, block: Block) -> Path:
        return self.run_dir / "ledger" / f"{block.key}.json"

    # ---- writing

    def commit(self, block: Block, record: BlockRecord) -> BlockRecord:
        """Publish a finished block whose shards lie in its scratch folder, then move them into place.

        Args:
            block: the block.
            record: its record, state `done`.

        Returns:
            The record that stands: this one, or that of another writer who was first (its token differs);
            a loser's scratch folder is deleted.
        """
        # The record tells who won, not the answer to `link`: a network file system may send that request
        # twice and then report that the file, its own, exists.
        scratch = self.scratch(block, record.token)
        _sync_tree(scratch)
        self._publish(self._record_path(block), record)
        if self._overtaken(block, record):
            self._record_path(block).unlink(missing_ok=True)
        standing = self.record(block)
        if standing is None:
            raise LedgerError("a record of the block just committed", "none", str(self._record_path(block)))
        if standing.token != record.token:
            shutil.rmtree(scratch, ignore_errors=True)
        self.install(block, standing)
        return standing

    def record_failure(self, block: Block, record: BlockRecord) -> None:
        """Store that one attempt failed."""
        path = self._record_path(block).with_suffix(f".failed.{record.token}.json")
        self._publish(path, record)

    def fold(self, partition: Partition, block_size: int) -> bool:
        """Put the records of a finished partition into one file.

        Returns:
            Whether the partition is folded now: False while a block is missing.
        """
        folder = self._folder(partition)
        if not (folder / FOLDED).exists():
            done, failed = self._single_records(folder)
            blocks = {block.key: block for block in partition.blocks(block_size)}
            if set(done) != set(blocks):
                return False
            for key, block in blocks.items():  # its writer may have died between record and renaming
                self.install(block, done[key])
            content = [record.to_dict() for record in (*(done[key] for key in sorted(done)), *failed)]
            _publish_bytes(folder / FOLDED, json.dumps(content).encode())
        for path in folder.glob("b[0-9]*.json"):
            path.unlink(missing_ok=True)
        return True

    def finish_interrupted(self, blocks: Sequence[Block]) -> int:
        """Complete what a killed run left half-done, and delete scratch that no living writer owns.

        Args:
            blocks: blocks of the plan.

        Returns:
            How many blocks had shards to move.

        Raises:
            LedgerError: a shard that a record names is in neither place.
        """
        by_key = {block.key: block for block in blocks}
        moved = 0
        for partition in dict.fromkeys(block.partition for block in blocks):
            if (self._folder(partition) / FOLDED).exists():
                continue
            done, _ = self._single_records(self._folder(partition))
            moved += sum(self.install(by_key[key], record) for key, record in done.items() if key in by_key)
        for folder in sorted((self.run_dir / "scratch").glob("Norder=*/Dir=*/Npix=*/b*.*")):
            if not _alive(folder.name.split(".", 1)[1], folder):
                shutil.rmtree(folder, ignore_errors=True)
        return moved

    def install(self, block: Block, record: BlockRecord) -> bool:
        """Move a winner's shards into place; several processes may do it at once.

        Returns:
            Whether there was anything to move.
        """
        scratch, moved = self.scratch(block, record.token), False
        for shard in record.shards:
            target = self.run_dir / shard.path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(scratch / shard.path, target)
            except FileNotFoundError:
                if target.exists():
                    continue
                raise LedgerError(
                    "a shard of a committed block",
                    "no file, neither here nor in scratch",
                    str(target),
                    f"Delete the block's record below {self._folder(block.partition)} to fit it again.",
                ) from None
            moved = True
            _sync_directory(target.parent)
        shutil.rmtree(scratch, ignore_errors=True)
        return moved

    def _publish(self, path: Path, record: BlockRecord) -> bool:
        return _publish_bytes(path, json.dumps(record.sealed().to_dict(), indent=1).encode())

    def _overtaken(self, block: Block, record: BlockRecord) -> bool:
        """Whether a partition was folded with another attempt's record before ours was published."""
        folded = self._folder(block.partition) / FOLDED
        if not folded.exists():
            return False
        tokens = {item.token for item in self._read_folded(folded) if item.state == "done"}
        return record.token not in tokens

    # ---- reading

    def record(self, block: Block) -> BlockRecord | None:
        """The record of a finished block, or None."""
        folder = self._folder(block.partition)
        if (folder / FOLDED).exists():
            for record in self._read_folded(folder / FOLDED):
                if record.key == block.key and record.state == "done":
                    return record
            return None
        path = self._record_path(block)
        return _read_record(path) if path.exists() else None

    def done(self, blocks: Sequence[Block]) -> dict[str, BlockRecord]:
        """Records of the finished blocks among `blocks`, by key."""
        return self.facts(blocks)[0]

    def facts(self, blocks: Sequence[Block]) -> tuple[dict[str, BlockRecord], dict[str, list[BlockRecord]]]:
        """All facts about `blocks`: finished ones by key, and failed attempts by key, oldest first."""
        wanted = {block.key for block in blocks}
        done: dict[str, BlockRecord] = {}
        failed: dict[str, list[BlockRecord]] = {}
        for partition in dict.fromkeys(block.partition for block in blocks):
            finished, attempts = self._partition_facts(partition)
            done.update((key, record) for key, record in finished.items() if key in wanted)
            for record in sorted(attempts, key=lambda item: item.time):
                if record.key in wanted:
                    failed.setdefault(record.key, []).append(record)
        return done, failed

    def _partition_facts(self, partition: Partition) -> tuple[dict[str, BlockRecord], list[BlockRecord]]:
        folder = self._folder(partition)
        if (folder / FOLDED).exists():
            records = self._read_folded(folder / FOLDED)
            done = {record.key: record for record in records if record.state == "done"}
            return done, [record for record in records if record.state == "failed"]
        return self._single_records(folder)

    def _single_records(self, folder: Path) -> tuple[dict[str, BlockRecord], list[BlockRecord]]:
        done, failed = {}, []
        for path in sorted(folder.glob("b[0-9]*.json")):
            try:
                record = _read_record(path)
            except FileNotFoundError:  # folded between listing and reading
                continue
            if record.state == "done":
                done[record.key] = record
            else:
                failed.append(record)
        return done, failed

    def _read_folded(self, path: Path) -> list[BlockRecord]:
        content = _read_json(path)
        if not isinstance(content, list):
            raise LedgerError("a list of block records", type(content).__name__, str(path), _DAMAGED)
        return [BlockRecord.from_dict(item, path) for item in content]


def _read_record(path: Path) -> BlockRecord:
    return BlockRecord.from_dict(_read_json(path), path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LedgerError("a JSON file", "other content", str(path), _DAMAGED) from error


def _publish_bytes(path: Path, content: bytes) -> bool:
    """Create `path` with `content` as a whole, or leave it as it is and return False if it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    created = True
    temporary = path.parent / f".{path.name}.{new_token()}"
    try:
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)
    except FileExistsError:
        created = False
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)
    return created


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Force the names of files and folders under `folder` to disk; contents are the writer's duty."""
    for parent, _, _ in os.walk(folder):
        _sync_directory(Path(parent))


def _alive(token: str, folder: Path) -> bool:
    """Whether the writer of a scratch folder may still live.

    A writer on another machine cannot be asked: it counts as dead after a day without a change.
    """
    host, process, _ = token.rsplit("-", 2)
    if host != socket.gethostname():
        return time.time() - folder.stat().st_mtime < 86_400
    if int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
