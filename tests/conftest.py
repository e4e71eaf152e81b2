"""Fixtures that all tests share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1].parent / "shared"


def shared_folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the folder shared/{name} beside the repository")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets, where they are there."""
    return shared_folder("data")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Real tokenizers and tiny models, where they are there."""
    return shared_folder("models")
