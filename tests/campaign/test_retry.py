import pytest

from popcosmos_hpc.campaign.ledger import BlockRecord
from popcosmos_hpc.campaign.retry import ErrorClass, batch_size_after, classify, is_quarantined, pause_after
from popcosmos_hpc.errors import SchemaError


def failed(*classes):
    return [BlockRecord("b", "failed", 1, "", 1, error_class=item) for item in classes]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes"), "memory"),
        (OSError(28, "No space left on device"), "storage"),
        (TimeoutError("slow disk"), "storage"),
        (ValueError("bad shape"), "deterministic"),
        (SchemaError("a", "b"), "deterministic"),
        (RuntimeError("odd"), "other"),
    ],
)
def test_classes(error, expected):
    assert classify(error) == expected


def test_quarantine():
    assert not is_quarantined([], 3)
    assert not is_quarantined(failed("storage", "memory"), 3)
    assert is_quarantined(failed("storage", "memory", "other"), 3)
    assert is_quarantined(failed("deterministic"), 3)
    assert not is_quarantined(failed(*["infrastructure"] * 9), 3)
    assert is_quarantined(failed(*["infrastructure"] * 10), 3)
    assert not is_quarantined(failed(*["infrastructure"] * 5, "storage", "storage"), 3)


def test_batch_and_pause():
    assert batch_size_after(16, failed("memory", "storage", "memory")) == 4
    assert batch_size_after(2, failed(*["memory"] * 5)) == 1
    assert pause_after(2.0, []) == 0 == pause_after(2.0, failed("storage", "other"))
    assert [pause_after(2.0, failed(*["storage"] * n)) for n in (1, 2, 3, 20)] == [2, 4, 8, 60]
    assert classify(RuntimeError("x")) is ErrorClass.OTHER
