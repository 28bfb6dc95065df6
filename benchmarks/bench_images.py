"""How fast images become rows: the images source against bare loops of Pillow over the same files.

Writes JPEGs into a temporary folder and prints images a second, medians of alternating runs, with ratios. The pool with
``draft`` does what the source does (decode reduced, resize, one thread a core) and is the fairest to compare with.
Usage: ``python benchmarks/bench_images.py [runs]``.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from refit.config import ImagesSource
from refit.sources import images
from refit.sources.inputs import Input
from refit.sources.seen import Seen

NUM_IMAGES = 2_000
FILE_SIZE = (256, 256)
SHAPE = (64, 64, 3)
GOAL_PER_SECOND, GOAL_RATIO = 1_000, 0.8


def write_images(folder: Path) -> list[Path]:
    """Smooth images with some noise, about as hard to decode as photographs, in one class folder."""
    generator = np.random.default_rng(0)
    (folder / "photo").mkdir()
    paths = [folder / "photo" / f"{number:05}.jpg" for number in range(NUM_IMAGES)]
    for path in paths:
        coarse = Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize(FILE_SIZE, Image.Resampling.BICUBIC)
        noise = generator.normal(0, 6, (*FILE_SIZE, 3))
        Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(path, quality=85)
    return paths


def decode(path: Path) -> np.ndarray:
    """As most scripts do it."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SHAPE[1], SHAPE[0]), Image.Resampling.BILINEAR))


def decode_reduced(path: Path) -> np.ndarray:
    """With the JPEG decoder's own reduction, to twice the wanted size at least."""
    with Image.open(path) as image:
        image.draft("RGB", (2 * SHAPE[1], 2 * SHAPE[0]))
        return np.asarray(image.convert("RGB").resize((SHAPE[1], SHAPE[0]), Image.Resampling.BILINEAR))


def run_pool(decoder: Callable[[Path], np.ndarray], paths: list[Path]) -> int:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return sum(1 for _ in pool.map(decoder, paths))


def run_source(found: Input, spool: Path) -> int:
    with images.open_input(found, spool) as opened:
        return sum(len(batch) for batch in opened.read())


def main(runs: int) -> None:
    """Measure and print."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="refit-bench-") as name:
        folder = Path(name)
        paths = write_images(folder)
        source = ImagesSource(kind="images", path=name, shape=SHAPE, resize=True)
        found = images.list_inputs(source, {}, Seen.load(folder / "seen.json"))[0]
        loops: dict[str, Callable[[], int]] = {
            "refit's images source": lambda: run_source(found, folder),
            "bare pool, draft": lambda: run_pool(decode_reduced, paths),
            "bare pool": lambda: run_pool(decode, paths),
            "bare loop, draft": lambda: sum(1 for _ in map(decode_reduced, paths)),
            "bare loop": lambda: sum(1 for _ in map(decode, paths)),
        }
        for _ in range(runs):
            for loop, work in loops.items():
                started = time.perf_counter()
                if work() != NUM_IMAGES:
                    raise RuntimeError(loop)
                seconds.setdefault(loop, []).append(time.perf_counter() - started)
    rates = {loop: NUM_IMAGES / statistics.median(walls) for loop, walls in seconds.items()}
    ours = rates["refit's images source"]
    size = f"{NUM_IMAGES:,} JPEGs of {FILE_SIZE[0]} x {FILE_SIZE[1]} to {SHAPE[0]} x {SHAPE[1]}"
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}; {size}, {runs} runs; medians")
    for loop, rate in rates.items():
        print(f"  {loop:<24}{rate:8,.0f} images/s   refit / this: {ours / rate:5.2f}")
    is_met = ours >= GOAL_PER_SECOND or ours >= GOAL_RATIO * rates["bare pool, draft"]
    print(f"  goal ({GOAL_PER_SECOND:,} images/s, or {GOAL_RATIO} of the bare pool with draft): {'met' if is_met else 'missed'}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
