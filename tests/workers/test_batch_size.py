"""The batch size of a worker: halved when GPU memory runs out, and tried twice as large again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.spec import Recipe
from stereo_jobs.workers.batch_size import FIRST_WAIT, BatchSize, first_size

some = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def run(size, fits, batches):
    """Generate batches on a GPU that holds `fits(batch)` images; return the sizes that succeeded, and the failures."""
    sizes, failures = [], 0
    while len(sizes) < batches:
        if size.now > fits(len(sizes)):
            size.ran_out_of_memory()
            failures += 1
        else:
            sizes.append(size.now)
            size.succeeded()
    return sizes, failures


def test_it_grows_back_after_some_successes():
    sizes, failures = run(BatchSize(8), lambda batch: 2 if batch == 0 else 100, 3 * FIRST_WAIT)
    assert sizes == [2] * FIRST_WAIT + [4] * FIRST_WAIT + [8] * FIRST_WAIT
    assert failures == 2


@some
@given(st.integers(1, 64), st.integers(1, 64))
def test_a_size_that_never_fits_fails_ever_more_rarely(largest, fits):
    _, failures = run(BatchSize(largest), lambda batch: fits, 4096)
    assert failures <= 7 + (4096).bit_length()


@some
@given(st.integers(1, 100), st.lists(st.integers(1, 100), min_size=200, max_size=200))
def test_it_stays_between_one_and_the_spec(largest, fits):
    sizes, _ = run(BatchSize(largest), fits.__getitem__, len(fits))
    assert min(sizes) >= 1
    assert max(sizes) <= largest


def test_a_gpu_with_room_gets_the_whole_size_again_however_often_it_failed():
    size = BatchSize(4)
    run(size, lambda batch: 1, 1000)
    sizes, _ = run(size, lambda batch: 4, 4000)
    assert sizes[-1] == 4


def sd15(**recipe):
    """A recipe of Stable Diffusion 1.5 at 512 x 512 in half precision."""
    models = {"stable_diffusion": {"path": "demo", "dtype": "float16"}}
    size = {"width": 512, "height": 512}
    return resolve_recipe(Recipe.model_validate({"models": models, "size": size} | recipe))


@pytest.mark.parametrize(("gigabytes", "size"), [(0, 1), (6, 1), (13.8, 4), (21.8, 8), (37.8, 16), (77.8, 16)])
def test_the_first_size_for_gpus_of_common_sizes(gigabytes, size):
    assert first_size(gigabytes * 1e9, sd15()) == size


@some
@given(st.floats(-1e9, 2e11), st.floats(0, 1e11))
def test_more_memory_never_gives_a_smaller_size(free, more):
    assert 1 <= first_size(free, sd15()) <= first_size(free + more, sd15()) <= 16


def test_what_needs_more_memory_starts_smaller():
    usual = first_size(22e9, sd15())
    assert first_size(22e9, sd15(size={"width": 1024, "height": 1024})) < usual
    assert first_size(22e9, sd15(method={"preset": "official"})) < usual
    assert first_size(22e9, sd15(models={"stable_diffusion": {"path": "demo"}})) < usual
