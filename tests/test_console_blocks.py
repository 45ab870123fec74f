"""Every command that the pages print: run as printed in a copy of the clone, or listed here with why it is not.

All commands of `stereo-jobs` are at least parsed, and those of Python scripts have the options that they are given.
"""

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import NamedTuple

import pillow_heif
import pytest
from PIL import ExifTags, Image
from typer.main import get_command

from stereo_jobs import cli
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene
from tests.conftest import REPOSITORY
from tests.seaweed import as_admin
from tests.test_docs import PAGES
from tests.waiting import PATIENCE_S

RUN = """
make demo
source .venv/bin/activate
pip install .
stereo-jobs demo --rows 2 --local
stereo-jobs manifest build photos photos.parquet
stereo-jobs run photos.yaml --local
stereo-jobs verify photos.yaml
stereo-jobs report photos.yaml
stereo-jobs manifest build prompts.txt s3://my-bucket/prompts/first.parquet
stereo-jobs manifest toyscapes scenes.parquet --rows 200 --mode image --level structured
stereo-jobs make "a red star on the left" -o pairs
stereo-jobs render kuberay job.yaml --image IMAGE
stereo-jobs render kuberay-cron job.yaml --image IMAGE --schedule "0 1 * * *"
stereo-jobs render ray-up job.yaml --image IMAGE
stereo-jobs render slurm job.yaml --gpus 4 --max-workers 2
stereo-jobs make "a blue circle on the right" "a red box on the left" -o pairs
stereo-jobs manifest toyscapes text.parquet --rows 1000 --mode text --split test
stereo-jobs manifest toyscapes depth.parquet --rows 1000 --mode depth --level crowded
stereo-jobs manifest toyscapes photo.parquet --rows 1000 --mode image --with-disparity --size 256x192
stereo-jobs render kuberay job.yaml --image IMAGE --provider eks --gpu-type l4 --namespace stereo --service-account \
stereo-jobs --max-workers 8 > rayjob.yaml
stereo-jobs render ray-up job.yaml --image IMAGE --gpu-type g6.xlarge --max-workers 8 --instance-profile \
arn:aws:iam::123456789012:instance-profile/stereo-jobs > aws-spot.yaml
stereo-jobs render slurm job.yaml --partition gpu --gpus 4 --cpus 32 --memory-gib 128 --max-workers 2 \
--setup 'source "$HOME/stereo-jobs/.venv/bin/activate"' > job.sh
stereo-jobs make holiday/IMG_0413.JPG -o pairs
stereo-jobs manifest build holiday holiday.parquet
stereo-jobs plan holiday.yaml --dry-run
stereo-jobs run holiday.yaml --local
stereo-jobs verify holiday.yaml
stereo-jobs report holiday.yaml
stereo-jobs manifest build captions.csv captions.parquet --id-from Nr --prompt-column Prompt
stereo-jobs plan captions.yaml --dry-run
stereo-jobs run captions.yaml --local
stereo-jobs errors captions.yaml
stereo-jobs verify captions.yaml
stereo-jobs report captions.yaml
"""
"""Commands that are run, in the order of their pages."""

NOT_RUN = {
    "needs models of the Hub, and a GPU to end in a test's time": """
stereo-jobs plan job.yaml --dry-run
stereo-jobs run job.yaml
stereo-jobs plan job.yaml --estimate --gpus 32 --price-per-hour 0.80
stereo-jobs plan job.yaml --estimate --gpu H100 --gpus 8
stereo-jobs evaluate out/paper --spec gpu.yaml --data Middlebury2014 --data KITTI2015/training --protocol paper \
--table methods --table techniques --slow-scenes 1000
stereo-jobs evaluate out/cost --spec gpu.yaml --table cost --size 512 --depth-model \
sd2-community/stable-diffusion-2-depth
""",
    "needs a folder of wheels; tests/test_gpu_benchmark.py runs it with the environment of the tests": """
benchmarks/gpu.sh wheels
""",
    "follows the run above": """
stereo-jobs status s3://my-bucket/stereo/first --watch
stereo-jobs status s3://my-bucket/stereo/first
stereo-jobs verify s3://my-bucket/stereo/first
cat gpu.yaml
""",
    "needs a data set that is not ours to distribute": """
stereo-jobs evaluate out/evaluation --data Middlebury2014 --data KITTI2015/training
stereo-jobs evaluate out/evaluation --data path/to/Middlebury2014 --data path/to/KITTI2015/training
stereo-jobs evaluate out/evaluation --data DIR --folder "3D Photography=path/to/its/images"
stereo-jobs evaluate out/motorcycle --data path/to/middlebury --table switches --local --set runtime.batch_size=1 \
--method identity --method leave_blank --method stretch --method "stretch, sub-pixel" --method layered --method best
stereo-jobs evaluate out/protocols --data path/to/middlebury --protocol squash --protocol end_to_end --local \
--set runtime.batch_size=1 --method stretch --method layered --method best
python benchmarks/verdict.py --data path/to/middlebury
""",
    "takes hours on two cores": """
stereo-jobs evaluate out/toyscapes --toyscapes 200 --table switches --table cost
stereo-jobs evaluate out/evaluation --toyscapes 200 --table switches --table cost
stereo-jobs evaluate out/sweep --toyscapes 32 --sweep shift_step=0.1,0.2,0.4,0.6,0.8
stereo-jobs evaluate out/toyscapes --toyscapes 100 --protocol metric --table switches --local --method identity \
--method leave_blank --method stretch --method "stretch, sub-pixel" --method layered --method official --method best \
--method stereodiffusion
stereo-jobs evaluate out/switches --toyscapes 32 --protocol metric --table switches --slow-scenes 1 --local
stereo-jobs evaluate out/hard --toyscapes 60 --level hard --protocol metric --table switches --local \
--method "stretch, sub-pixel" --method "layered, sub-pixel" --method official --method best
python docs/write_photos.py out/photos
stereo-jobs evaluate out/cycle --photos out/photos --size 256 --table switches --local \
--method "stretch, sub-pixel" --method "layered, sub-pixel" --method best
stereo-jobs evaluate out/inpaint --toyscapes 8 --table inpaint --local
stereo-jobs evaluate out/depth --toyscapes 16 --table depth --local
stereo-jobs evaluate out/paper --toyscapes 100 --slow-scenes 8 --protocol paper --table methods --local
stereo-jobs evaluate out/techniques --toyscapes 8 --protocol paper --table techniques --local
stereo-jobs evaluate out/cost --table cost --local
stereo-jobs evaluate out/sweep --toyscapes 16 --protocol metric --sweep shift_step=0.1,0.2,0.4,0.6,0.8 --local
python benchmarks/verdict.py --first 2000
python benchmarks/quality_cost.py
python benchmarks/busy.py
python benchmarks/busy.py --s3
python benchmarks/bare_loop.py
python benchmarks/ray_data.py
python benchmarks/scale.py --shards 100000 --s3
python -m stereo_jobs.toyscapes vae
python -m stereo_jobs.toyscapes decoder
python -m stereo_jobs.toyscapes latents
python -m stereo_jobs.toyscapes unet
python -m stereo_jobs.toyscapes depth
python -m stereo_jobs.toyscapes judge
python -m stereo_jobs.toyscapes evaluate
python -m stereo_jobs.toyscapes judge --work build/judge
python -m stereo_jobs.toyscapes evaluate --work build/judge
""",
    "needs a Ray cluster; tests/launch/test_submit.py runs these commands on one": """
export RAY_AUTH_TOKEN=...
stereo-jobs submit job.yaml --address http://head:8265
stereo-jobs submit job.yaml --address http://head:8265 --detach
stereo-jobs logs stereo-jobs-5d0c7a5b9d1e-2 --follow --address http://head:8265
stereo-jobs stop stereo-jobs-5d0c7a5b9d1e-2 --address http://head:8265
""",
    "needs Kubernetes, Docker, Slurm or Grafana": """
kubectl create secret generic s3-keys --namespace stereo --from-env-file=s3.env
kubectl apply --filename rayjob.yaml
kubectl get rayjob stereo-jobs --namespace stereo --watch
docker build --file cluster/docker/Dockerfile --tag registry.example.com/stereo-jobs:0.1.0 .
docker run --rm --gpus all registry.example.com/stereo-jobs:0.1.0 stereo-jobs demo --rows 1
jq '{dashboard: ., overwrite: true}' dashboard.json |
sbatch job.sh
""",
}
CHANGING = re.compile(r"\b\d+\.\d [KMG]B\b")
"""What may differ from machine to machine in a line of output."""
CLONE = "/home/you/stereo-jobs"
"""Where the clone lies on the pages."""


class Command(NamedTuple):
    """A command of a page.

    Attributes:
        page: name of the page.
        text: the command as printed, with its comment and its line breaks.
        said: the lines printed below it.
    """

    page: str
    text: str
    said: tuple[str, ...]

    @property
    def words(self) -> str:
        """The command on one line, without comment: what the lists above hold."""
        text = re.sub(r"\\\n\s*", "", self.text) if "\\\n" in self.text else self.text
        return " ".join(re.sub(r"\s+# .*", "", text).split())


@functools.cache
def commands() -> tuple[Command, ...]:
    """All commands in the console blocks of all pages."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```console\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for text, said in re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
                found.append(Command(page.relative_to(REPOSITORY).as_posix(), text, tuple(said.splitlines())))
    return tuple(found)


def listed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def test_every_command_is_run_or_listed_with_a_reason():
    names = [*listed(RUN), *(name for text in NOT_RUN.values() for name in listed(text))]
    assert len(names) == len(set(names))
    assert {command.words for command in commands()} == set(names)
    assert {command.page for command in commands()} >= {"README.md", "docs/cluster.md"}
    # Only the commands of a block are found by `$`: none hides behind a space.
    blocks = sum(page.read_text(encoding="utf-8").count("```console") for page in PAGES)
    assert blocks == sum(len(re.findall(r"```console\n\$ ", page.read_text(encoding="utf-8"))) for page in PAGES)


@pytest.mark.parametrize("command", sorted({c.words for c in commands() if c.words.startswith("stereo-jobs")}))
def test_a_printed_command_parses(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command.partition(" > ")[0])[1:]
    parser = get_command(cli.app)
    while hasattr(parser, "commands"):
        parser = parser.commands[words.pop(0)]
    parser.make_context(parser.name, words)


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted({c.words for c in commands() if c.words.startswith("python ")}))
def test_a_printed_script_has_the_options(command):
    words = shlex.split(command)[1:]
    options = [word for word in words if word.startswith("--")]
    program = words[: words.index(options[0])] if options else words
    done = subprocess.run(
        [sys.executable, *program, "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [option for option in options if option not in done.stdout] == []


# --- Run as printed ---


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the clone after `make setup`, whose environment takes its libraries from the one of the tests."""
    folder = tmp_path_factory.mktemp("clone") / "stereo-jobs"
    left_out = shutil.ignore_patterns(".*", "out", "build", "dist", "__pycache__")
    shutil.copytree(REPOSITORY, folder, ignore=left_out)
    shutil.copy(REPOSITORY / ".gitignore", folder)
    venv.create(folder / ".venv", symlinks=True)
    [packages] = folder.glob(".venv/lib/python*/site-packages")
    # As `pip install -e` does: the folder itself first, then the libraries.
    (packages / "clone.pth").write_text(f"{folder}\nimport site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for name, program in (("pip", "-m pip"), ("stereo-jobs", "-m stereo_jobs")):
        script = folder / ".venv/bin" / name
        script.write_text(f'#!/bin/sh\nexec "{folder}/.venv/bin/python" {program} "$@"\n')
        script.chmod(0o755)
    (folder / ".venv/.ready").touch()
    return folder


def write_photos(folder: Path) -> None:
    """Ten small photos with all that lies beside them on a phone's card; some are stored on their side (EXIF)."""
    (folder / "beach").mkdir(parents=True)
    names = ["IMG_0412.JPG", "IMG_0413.JPG", "IMG_0414.jpeg", "IMG_0415.JPEG", "IMG_0416.jpg", "IMG_0417.PNG"]
    for number, name in enumerate([*names, "IMG_0418.HEIC", "IMG_0419.MPO", "beach/IMG_0412.JPG", "beach/2 (1).jpg"]):
        orientation = (1, 6, 3, 8)[number % 4]
        size = (96, 72) if orientation in (1, 3) else (72, 96)
        picture = Image.fromarray(render(draw_scene(number), *size).left)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        if name.endswith(".HEIC"):
            pillow_heif.from_pillow(picture).save(folder / name)
        elif name.endswith(".MPO"):
            picture.save(folder / name, exif=exif, save_all=True, append_images=[picture.resize((48, 36))])
        else:
            picture.save(folder / name, exif=exif)
    for name in (".DS_Store", "._IMG_0412.JPG", "Thumbs.db", "IMG_0420.MOV"):
        (folder / name).write_bytes(b"not a picture")


def write_table(path: Path) -> None:
    """The CSV file of the tutorial as a spreadsheet saves it; the prompt that is shortened there is long."""
    [table] = re.findall(r"```text\n(Nr;.*?)```", (REPOSITORY / "docs/tutorial.md").read_text("utf-8"), re.DOTALL)
    whole = table.replace("...", "a red star on the left, " * 40)
    path.write_bytes(b"\xef\xbb\xbf" + whole.replace("\n", "\r\n").encode())


@pytest.fixture(scope="module")
def environment(clone, s3_server):
    """What the pages assume beside the clone: a bucket, and the files that they show or name."""
    as_admin(s3_server).create_bucket(Bucket="my-bucket")
    for page in ("README.md", "docs/tutorial.md"):
        for name, text in re.findall(r"```yaml\n# (\w+\.yaml)\n(.*?)```", (clone / page).read_text(), re.DOTALL):
            (clone / name).write_text(text)
    for folder in ("photos", "holiday"):
        write_photos(clone / folder)
    write_table(clone / "captions.csv")
    (clone / "prompts.txt").write_text("".join(f"a red star, number {number}\n" for number in range(10_000)))
    offline = {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    hidden = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return hidden | offline | {"AWS_ENDPOINT_URL": s3_server}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", dict.fromkeys(c.page for c in commands() if c.words in listed(RUN)))
def test_the_commands_of_a_page_do_what_it_prints(clone, environment, page):
    """From the README's second command on, the environment is active; other pages are read after the README."""
    active = page != "README.md"
    for command in commands():
        if command.page != page or command.words not in listed(RUN):
            continue
        active |= command.words == "source .venv/bin/activate"
        text = f"source .venv/bin/activate\n{command.text}" if active else command.text
        done = subprocess.run(
            ["bash", "-c", text], cwd=clone, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, f"{command.text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        said = [CHANGING.sub("SIZE", line.strip()) for line in done.stdout.replace(str(clone), CLONE).splitlines()]
        wanted = [CHANGING.sub("SIZE", line.strip()) for line in command.said]
        assert [line for line in said if line in wanted] == wanted, f"{command.text}\n{done.stdout}"
