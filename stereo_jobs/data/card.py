"""The dataset card: what a stranger needs to know who finds the folder."""

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
    """README.md of a dataset.

    Counts stand in its prose and not in `dataset_info.splits`: there they would break loading as soon as
    more shards land.

    Args:
        recipe: resolved.
        planned: pairs planned.
        version: of this package.
        made: pairs made, once the job is finished.
        failed: rows that failed.
        rejected: pairs left out for their verdict.
    """
    template = resources.files("stereo_jobs.data").joinpath("card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    return (
        environment.from_string(template)
        .render(recipe=recipe, planned=planned, version=version, made=made, failed=failed, rejected=rejected)
        .encode()
    )
