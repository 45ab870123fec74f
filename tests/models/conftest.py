"""One thread: the networks here are too small for more, and other processes want the cores."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """In every module of this folder."""
