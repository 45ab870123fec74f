"""Writes the real photos inside scikit-image into a folder, for `stereo-jobs evaluate --photos`.

python docs/write_photos.py out/photos

They ship with the package: nothing is downloaded.
"""

import argparse
import shutil
from pathlib import Path

import skimage

NAMES = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png"),
    *("coins.png", "grass.png", "gravel.png", "moon.png", "motorcycle_left.png", "rocket.jpg"),
)


def write(folder: Path) -> list[Path]:
    """Copy the photos; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(skimage.__file__).parent / "data"
    return [Path(shutil.copyfile(data / name, folder / name)) for name in NAMES]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
