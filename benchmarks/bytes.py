"""What the bytes of a pair cost: milliseconds and size of each way to encode its views and disparities.

    python benchmarks/bytes.py                  # ToyScapes and photos of scikit-image, at 512 and 1024
    python benchmarks/bytes.py --sizes 512 --json

The first line of each table is what stereo-jobs writes. Every encoding is decoded by Pillow and by OpenCV; `exact` is
whether both give the same bits back. The disparity of a photo is its brightness, smoothed within its edges: as soft,
and with as many digits, as what an estimator gives.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Iterable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import draw_scene

Pixels = NDArray[np.uint8] | NDArray[np.float32]
Encoders = dict[str, Callable[[Pixels], bytes]]

PHOTOS = ("astronaut", "coffee", "chelsea")
SCENES = 3
REPEATS = 5
SHIFT = 0.09
"""Disparity of the nearest point, as a share of the width."""
_PREDICTOR = 317
"""Tag of a TIFF: 1 for none, 2 for differences of integers, 3 for those of the bytes of floats."""


def photo(name: str, size: int) -> tuple[Pixels, Pixels]:
    """A photo of scikit-image, square, and a disparity for it."""
    pixels = getattr(data, name)()
    shrinks = min(pixels.shape[:2]) >= size
    view = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    grey = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    return view, cv2.bilateralFilter(grey, 0, 0.1, size / 100) * np.float32(SHIFT * size)


def scene(number: int, size: int) -> tuple[Pixels, Pixels]:
    """A ToyScape and its true disparity."""
    drawn = render(draw_scene(number, "test"), size, size)
    return drawn.left, drawn.disparity


def png(**options: int) -> Callable[[Pixels], bytes]:
    return lambda pixels: pillow(pixels, "PNG", **options)


def tiff(compression: str, predictor: int = 1) -> Callable[[Pixels], bytes]:
    return lambda pixels: pillow(pixels, "TIFF", compression=compression, tiffinfo={_PREDICTOR: predictor})


def pillow(pixels: Pixels, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def opencv(suffix: str, *options: int) -> Callable[[Pixels], bytes]:
    return lambda pixels: cv2.imencode(suffix, as_bgr(pixels), list(options))[1].tobytes()


def as_bgr(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 else pixels


_LEVEL, _STRATEGY, _FILTER = cv2.IMWRITE_PNG_COMPRESSION, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_FILTER
_RLE, _ALL = cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_ALL_FILTERS

VIEWS: Encoders = {
    "stereo-jobs": encode_png,
    **{f"Pillow, level {level}": png(compress_level=level) for level in (1, 3, 4, 6, 9)},
    **{
        f"Pillow, level {level}, {name}": png(compress_level=level, compress_type=kind)
        for name, kind in (("filtered", 1), ("Huffman only", 2), ("runs", 3))
        for level in (1, 6)
    },
    "OpenCV, level 1, runs, filter sub": opencv(".png"),
    "OpenCV, level 1, runs, all filters": opencv(".png", _LEVEL, 1, _STRATEGY, _RLE, _FILTER, _ALL),
    "OpenCV, level 6, runs, all filters": opencv(".png", _LEVEL, 6, _STRATEGY, _RLE, _FILTER, _ALL),
    "OpenCV, level 3, all filters": opencv(".png", _LEVEL, 3, _STRATEGY, 0, _FILTER, _ALL),
}
DISPARITIES: Encoders = {
    "stereo-jobs": encode_disparity,
    "none": tiff("raw"),
    **{
        f"{name}, predictor {predictor}": tiff(codec, predictor)
        for name, codec in (("deflate", "tiff_adobe_deflate"), ("zstd", "zstd"), ("LZW", "tiff_lzw"))
        for predictor in (1, 2, 3)
    },
    "OpenCV, LZW": opencv(".tiff"),
}


READERS: dict[str, Callable[[bytes], Pixels]] = {
    "pillow": lambda encoded: np.asarray(Image.open(io.BytesIO(encoded))),
    "opencv": lambda encoded: as_bgr(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)),
}


def measure(encoders: Encoders, pictures: Iterable[Pixels]) -> list[dict[str, object]]:
    """Encode each picture in each way: the best of some times, mean over the pictures."""
    pictures = list(pictures)
    lines = []
    for name, encode in encoders.items():
        times, sizes, read = [], [], dict.fromkeys(READERS, True)
        for pixels in pictures:
            seconds = []
            for _ in range(REPEATS):
                started = time.perf_counter()
                encoded = encode(pixels)
                seconds.append(time.perf_counter() - started)
            times.append(min(seconds))
            sizes.append(len(encoded))
            read = {reader: ok and same(pixels, encoded, READERS[reader]) for reader, ok in read.items()}
        means = {"ms": round(1000 * float(np.mean(times)), 1), "bytes": int(np.mean(sizes))}
        lines.append({"encoding": name, **means, **{f"exact_{reader}": value for reader, value in read.items()}})
    return lines


def same(pixels: Pixels, encoded: bytes, decode: Callable[[bytes], Pixels]) -> bool:
    try:
        decoded = decode(encoded)
    except Exception:  # what a reader raises that lacks the codec
        return False
    return decoded.dtype == pixels.dtype and decoded.tobytes() == pixels.tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    for size in arguments.sizes:
        sources = {
            "ToyScapes": [scene(n, size) for n in range(SCENES)],
            "photos": [photo(name, size) for name in PHOTOS],
        }
        for source, pictures in sources.items():
            for what, encoders, column in (("views", VIEWS, 0), ("disparities", DISPARITIES, 1)):
                lines = measure(encoders, (picture[column] for picture in pictures))
                if arguments.json:
                    print(json.dumps({"size": size, "source": source, "of": what, "encodings": lines}))
                else:
                    print(f"\n{what} of {source}, {size} x {size}\n")
                    print_table(lines)


def print_table(lines: list[dict[str, object]]) -> None:
    print("| " + " | ".join(lines[0]) + " |")
    print("|---" * len(lines[0]) + "|")
    for line in lines:
        print("| " + " | ".join(map(str, line.values())) + " |", flush=True)


if __name__ == "__main__":
    main()
