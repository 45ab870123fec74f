"""The command that measures methods on scenes with truth: evaluate."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stereo_jobs import interrupts
from stereo_jobs.cli.console import err, out, print_facts
from stereo_jobs.cli.options import AsJson, Local, Set

if TYPE_CHECKING:
    from stereo_jobs.evaluate.evaluation import Evaluation
    from stereo_jobs.run.driver import ProgressCallback
    from stereo_jobs.spec import JobSpec


def evaluate(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or s3:// prefix for jobs and tables.")],
    *,
    data: Annotated[
        list[Path] | None, typer.Option(help="Folder of Middlebury 2014 or KITTI 2015 (training); repeatable.")
    ] = None,
    photos: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of photos, of any size, for protocol cycle.")
    ] = None,
    toyscapes: Annotated[int, typer.Option(min=0, help="Number of rendered scenes.")] = 0,
    level: Annotated[
        list[str] | None,
        typer.Option(help="Level of the rendered scenes; repeatable; default plain and structured, in turn."),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="paper (min-max disparity), metric (true pixels), squash (whole scene as a square), end_to_end "
            "(estimated disparity, best scale), cycle (photos); repeatable; default paper and metric, cycle for photos."
        ),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(help="methods, techniques, switches, depth, inpaint, cost; repeatable; default methods."),
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods of the tables; repeatable.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=V,V,...", help="Compare values of a switch, on top of each --method or of best."),
    ] = None,
    folder: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="Folder of another program's right views, files named by row id."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=64, help="Width and height of the images, longest side of photos; default 512, ToyScapes 128."
        ),
    ] = None,
    slow_scenes: Annotated[int, typer.Option(min=1, help="Number of scenes for null-text inversion and RePaint.")] = 32,
    cost_pairs: Annotated[int, typer.Option(min=1, help="Number of pairs for each cell of the table cost.")] = 4,
    depth_model: Annotated[
        str | None, typer.Option(help="Depth-conditioned Stable Diffusion, for the table depth and that mode of cost.")
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="Job spec; its models and runtime apply to all jobs.")] = None,
    overrides: Set = None,
    local: Local = False,
    as_json: AsJson = False,
) -> None:
    """Score methods on scenes with truth, as the paper's tables do; resumes where it left off."""
    interrupts.install()
    from stereo_jobs.evaluate.evaluation import Options
    from stereo_jobs.evaluate.evaluation import evaluate as run_evaluation
    from stereo_jobs.evaluate.protocols import level_by_name, protocol_by_name
    from stereo_jobs.report.terminal import evaluation_display
    from stereo_jobs.spec_reading import spec_data

    options = Options(
        data=tuple(data or ()),
        photos=photos,
        toyscapes=toyscapes,
        levels=tuple(level_by_name(name) for name in level or ("plain", "structured")),
        protocols=tuple(map(protocol_by_name, protocol or ())),
        tables=tuple(table or (["methods"] if not sweep else ())),
        methods=tuple(method or ()),
        sweeps=tuple(sweep or ()),
        folders=tuple(folder or ()),
        size=size,
        slow_scenes=slow_scenes,
        cost_pairs=cost_pairs,
        depth_model=depth_model,
    )
    base = spec_data(spec, overrides)
    with evaluation_display(err, quiet=as_json) as (begin, watch):
        found = run_evaluation(output, base, options, _case_runner(local, watch), begin)
    _print_evaluation(found, as_json)


def _case_runner(local: bool, watch: "ProgressCallback") -> "Callable[[JobSpec], None]":
    """A function that runs one job of an evaluation."""
    from stereo_jobs.evaluate.model_cache import ModelCache
    from stereo_jobs.run.driver import run as run_job
    from stereo_jobs.workers.worker import load_generator

    load = ModelCache() if local else load_generator

    def run_case(case: "JobSpec") -> None:
        run_job(case, local=local, load=load, watch=watch)

    return run_case


def _print_evaluation(found: "Evaluation", as_json: bool) -> None:
    """All tables, the scenes without a score, and where the summary is."""
    from stereo_jobs.evaluate.tables.formats import on_terminal

    problems = [
        {"of": key, "id": problem.id, "message": problem.message}
        for key, listed in found.problems.items()
        for problem in listed
    ]
    if not as_json:
        for table in found.tables:
            out.print(on_terminal(table))
    unscored = [f"without a score: {p['of']}: {p['id']}: {p['message']}" for p in problems]
    print_facts({"files": found.files, "problems": problems}, [*unscored, found.files[-1]], as_json)
