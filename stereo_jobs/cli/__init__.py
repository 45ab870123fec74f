"""The command line: parse, call, print. Imports nothing heavy before a verb needs it.

| module | what it does |
|---|---|
| `single` | the command that makes single pairs as files |
| `dataset` | commands that make a dataset and look at it |
| `evaluation` | the command that measures methods on scenes with truth |
| `cluster` | commands that run a job on a cluster |
| `manifests` | commands for specs and manifests |
| `options` | arguments and options that several commands share |
| `console` | prints text and tables, escaped |
"""

import logging
import os
import sys
from typing import Annotated

import typer
from rich.logging import RichHandler

from stereo_jobs import interrupts, logs
from stereo_jobs.cli import cluster, dataset, evaluation, manifests, single
from stereo_jobs.cli.console import err
from stereo_jobs.errors import StereoJobsError

log = logging.getLogger(__name__)

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Stereo image pairs by the million with StereoDiffusion: from a Parquet manifest to a verified dataset.",
    epilog="Exit codes: 0 done; 1 internal error; 2 bad spec, manifest, model, storage or cluster; 3 too many failed "
    "rows; 4 verify not ok; 5 output held by another run; 75 interrupted, the store is away, or the cluster has no "
    "room: run again to go on.",
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Verbose logging.")] = False,
) -> None:
    if version:
        from stereo_jobs.version import __version__

        print(__version__)
        raise typer.Exit
    logs.configure("text", verbose=verbose, handler=RichHandler(console=err, show_path=False, show_time=verbose))


# `--help` lists them in this order.
app.command()(dataset.demo)
app.command()(single.make)
app.command()(dataset.plan)
app.command()(dataset.run)
app.command()(dataset.retry_failed)
app.command()(dataset.status)
app.command()(dataset.errors)
app.command()(dataset.verify)
app.command()(dataset.report)
app.command()(evaluation.evaluate)
app.command()(cluster.render)
app.command()(cluster.submit)
app.command()(cluster.stop)
app.command("logs")(cluster.print_logs)
app.command()(manifests.spec)
manifest = typer.Typer(no_args_is_help=True, help="Make manifests.")
manifest.command("build")(manifests.manifest_build)
manifest.command("toyscapes")(manifests.manifest_toyscapes)
app.add_typer(manifest, name="manifest")


def main() -> None:
    """Entry point: an error that this package raises on purpose becomes one line and its exit code."""
    interrupts.install(ctrl_c=False)
    try:
        app()
    except StereoJobsError as error:
        if logs.is_json():
            log.error("%s", error, extra={"exit_code": error.exit_code})
        else:
            err.print(f"error: {error}", style="red")
        _exit(error.exit_code)
    except Exception:
        if not logs.is_json():
            raise
        log.exception("internal error")
        sys.exit(StereoJobsError.exit_code)
    except interrupts.Interrupt:
        err.print("error: interrupted; run again to go on", style="red", markup=False)
        raise
    except KeyboardInterrupt:
        sys.exit(interrupts.EXIT_CODE)


def _exit(code: int) -> None:
    """End the process without waiting for the threads of a shard that a run has abandoned in the middle of a batch."""
    pool = sys.modules.get("stereo_jobs.workers.local_pool")  # loaded, if there is such a thread
    if pool and pool.is_busy(patience_s=3.0):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
