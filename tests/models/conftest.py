"""Runs the networks of these tests with one thread: they are too small for more, and cores are shared."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Applies to every module of this folder."""
