"""The dataset card: what somebody who finds the folder needs to know about the dataset."""

from importlib import resources

import jinja2

from stereo_jobs.spec import Recipe


def render(
    recipe: Recipe,
    *,
    planned: int,
    version: str,
    made: int | None = None,
    failed: int = 0,
    rejected: int = 0,
) -> bytes:
    """Return the README.md of a dataset.

    Numbers of pairs are in its text and not in `dataset_info.splits`: loading checks those, and would fail as soon as
    more shards are added.

    Args:
        recipe: the resolved recipe.
        planned: number of planned pairs.
        version: version of this package.
        made: number of pairs in data/; None until the job has finished.
        failed: number of failed rows.
        rejected: number of pairs that were left out for their verdict.
    """
    template = resources.files("stereo_jobs.data").joinpath("card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    return (
        environment.from_string(template)
        .render(recipe=recipe, planned=planned, version=version, made=made, failed=failed, rejected=rejected)
        .encode()
    )
