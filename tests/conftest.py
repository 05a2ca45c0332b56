"""Share what the tests need: the folder of real photos, and signals that are heard."""

import signal
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of third-party photos beside the checkout; skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real photos: {folder.name} is not beside the checkout")
    return folder


@pytest.fixture(autouse=True)
def _signals_are_heard() -> None:
    """Undo what a shell does to commands in the background, and what run_app did in a test."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
