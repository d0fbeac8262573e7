"""How a failed attempt at a block is met: a pure rule on the facts of the ledger."""

from collections.abc import Sequence
from enum import StrEnum

from popcosmos_hpc.campaign.ledger import BlockRecord
from popcosmos_hpc.errors import PopCosmosError

INFRASTRUCTURE_LIMIT = 10
_LONGEST_PAUSE = 60.0
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory", "OOM")
_DETERMINISTIC = (PopCosmosError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


class ErrorClass(StrEnum):
    """What kind of failure it was.

    MEMORY: retried with half the batch. STORAGE: retried after a pause that doubles. INFRASTRUCTURE: the
    worker was lost; retried, and counted apart. DETERMINISTIC: would fail again; set aside at once.
    OTHER: retried as it is.
    """

    MEMORY = "memory"
    STORAGE = "storage"
    INFRASTRUCTURE = "infrastructure"
    DETERMINISTIC = "deterministic"
    OTHER = "other"


def classify(error: BaseException) -> ErrorClass:
    """Class of an exception.

    >>> classify(OSError(28, "No space left on device")).value
    'storage'
    """
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY):
        return ErrorClass.MEMORY
    if isinstance(error, OSError):
        return ErrorClass.STORAGE
    if isinstance(error, _DETERMINISTIC):
        return ErrorClass.DETERMINISTIC
    return ErrorClass.OTHER


def is_quarantined(failures: Sequence[BlockRecord], attempts: int) -> bool:
    """Whether a block is set aside.

    Args:
        failures: its failed attempts.
        attempts: allowed attempts; lost workers are not among them and have their own, larger, limit.
    """
    classes = [record.error_class for record in failures]
    lost = classes.count(ErrorClass.INFRASTRUCTURE)
    return (
        ErrorClass.DETERMINISTIC in classes or len(classes) - lost >= attempts or lost >= INFRASTRUCTURE_LIMIT
    )


def batch_size_after(batch_size: int, failures: Sequence[BlockRecord]) -> int:
    """Batch size of the next attempt: halved for each time memory ran out."""
    halvings = sum(record.error_class == ErrorClass.MEMORY for record in failures)
    return max(1, batch_size >> halvings)


def pause_after(backoff: float, failures: Sequence[BlockRecord]) -> float:
    """Seconds to wait before the next attempt: after storage errors, doubled for each."""
    storage = sum(record.error_class == ErrorClass.STORAGE for record in failures)
    if not failures or failures[-1].error_class != ErrorClass.STORAGE:
        return 0.0
    return min(backoff * 2 ** (storage - 1), _LONGEST_PAUSE)
