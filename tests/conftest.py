"""Fixtures that many tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings and labels, beside the checkout of this project's makers; users do not have them."""
    folder = (Path(__file__).resolve().parents[2] / "shared" / "data").resolve()
    if not folder.is_dir():
        pytest.skip("the real corpora are not at hand")
    return folder
