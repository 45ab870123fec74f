"""A run that may kill itself: `python -m tests.run.killed SPEC.json`, with the stand-in generator.

--real loads the real models. --extend and --max-hours=H mean the same as for `stereo-jobs run`. --ray runs on Ray;
without it the run uses this process.

KILL_AT=n in the environment: SIGKILL before the n-th write to the output, or in the middle of it with KILL_HALFWAY=1.
KILL_IN=worker counts only writes of processes that hold a generator, and kills only the first of them that gets there:
the file KILL_MARK records that it has happened.
"""

import itertools
import json
import os
import signal
import sys
from pathlib import Path

from stereo_jobs import interrupts

if __name__ == "__main__":
    # As the command line does: libraries have `except:` around imports, in which a Ctrl-C would be lost.
    interrupts.install()

from stereo_jobs.data import storage
from stereo_jobs.errors import StereoJobsError
from stereo_jobs.output import layout
from stereo_jobs.run.driver import run
from stereo_jobs.spec import Recipe
from stereo_jobs.spec_reading import parse_spec
from stereo_jobs.workers.worker import load_generator
from tests import standin

_writes = itertools.count(1)


def _die_once() -> None:
    mark = os.environ.get("KILL_MARK")
    if mark:
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)


def _armed(real, halfway: bool):
    def write(self, key, *args):
        counts = key not in (layout.LEASE, layout.PROBE)
        if counts and next(_writes) == int(os.environ["KILL_AT"]):
            if not halfway:
                _die_once()
            elif isinstance(self, storage.LocalStorage):
                os.fsync = lambda handle: _die_once()
        return real(self, key, *args)

    return write


def arm() -> None:
    if "KILL_AT" not in os.environ:
        return
    halfway = os.environ.get("KILL_HALFWAY") == "1"
    for kind in (storage.LocalStorage, storage.S3Storage):
        for name in ("create", "replace"):
            setattr(kind, name, _armed(getattr(kind, name), halfway))


def load_armed(recipe: Recipe, device: str, batch_size: int) -> standin.StandIn:
    """Load the stand-in in an actor: its writes are counted, and a file tells the tests its process id."""
    if "PID_FOLDER" in os.environ:
        Path(os.environ["PID_FOLDER"], str(os.getpid())).touch()
    if os.environ.get("KILL_IN") == "worker":
        arm()
    return standin.StandIn(batch_size)


def main() -> int:
    spec = parse_spec(json.loads(Path(sys.argv[1]).read_text()))
    local = "--ray" not in sys.argv
    if os.environ.get("KILL_IN") != "worker":
        arm()
    try:
        run(
            spec,
            local=local,
            extend="--extend" in sys.argv,
            max_hours=next((float(word[12:]) for word in sys.argv if word.startswith("--max-hours=")), None),
            load=load_generator if "--real" in sys.argv else load_armed,
        )
    except StereoJobsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
