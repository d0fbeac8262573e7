"""Settings and fixtures that every test shares."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

sys.path.insert(0, str(REPOSITORY))  # tests import each other as `tests.toy`, however pytest is started

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Compiled programs outlive the test process, also for the workers that tests start.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"popcosmos_hpc_xla_{os.getuid()}")
)

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

import tests.typecheck  # noqa: E402, F401  (the hook looks it up as an attribute)

# A shape that broadcasts by accident is the commonest silent error of array code.
jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook("popcosmos_hpc", "tests.typecheck.checked")


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """Compiled programs go with the file that needed them: each maps memory, a process has little."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data beside the checkout; tests that need it skip where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder of shared data at {folder.name}/ beside the checkout")
    return folder
