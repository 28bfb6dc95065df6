"""Rows a second of `refit predict` against bare calls of the model's signature on rows that are in memory already.

    python benchmarks/bench_predict.py NAME INPUT [--rows 1024 4096 16384]

Both are told by the clock and by the processor time that they take: where other work shares the machine, only the latter is fair.
Loading the model and measuring drift belong to the prediction.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from refit.layout import home_layout
from refit.prediction import SignatureModel, predict
from refit.raw_rows import RawReader
from refit.rejects import Rejects
from refit.served import Request, Served, check_request, find_served
from refit.sources import list_inputs
from refit.sources.seen import Seen

_REPEATS = 3


def timed(work: Callable[[], int]) -> tuple[float, float]:
    """Rows a second by the clock, and microseconds of processor time a row."""
    clock, busy = time.perf_counter(), time.process_time()
    rows = work()
    return rows / (time.perf_counter() - clock), (time.process_time() - busy) / rows * 1e6


def read_whole(served: Served, request: Request, folder: Path) -> pa.Table:
    job, _ = check_request(served, request)
    with Rejects(folder / "rejects", folder / "misfits") as rejects:
        return pa.concat_tables(RawReader(served, job, list_inputs(job.data, {}, Seen()), rejects, folder).read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("input")
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096, 16384])
    arguments = parser.parse_args()
    layout = home_layout()
    served = find_served(layout, arguments.name)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = Request(arguments.input, folder / "out.parquet", force=True)
        table = read_whole(served, request, folder)
        for size in arguments.rows:
            model = SignatureModel(served, size)
            batches = [model.tensors(table.slice(start, size)) for start in range(0, len(table), size)]

            def bare(model: SignatureModel = model, batches: list[dict[str, object]] = batches) -> int:
                return sum(len(next(iter(model.predict(batch, 0).values()))) for batch in batches)

            def whole(size: int = size) -> int:
                return predict(served, Request(arguments.input, folder / "out.parquet", force=True, batch_rows=size), layout).num_scored

            bare()
            runs = [(timed(bare), timed(whole)) for _ in range(_REPEATS)]
            (bare_rate, bare_busy), (whole_rate, whole_busy) = (
                (max(rate for rate, _ in side), min(busy for _, busy in side)) for side in zip(*runs, strict=True)
            )
            print(f"{size:>6} rows at a time  bare {bare_rate:>11,.0f} rows/s {bare_busy:6.2f} µs", end="  ")
            ratio = f"ratio {whole_rate / bare_rate:.0%}, of the processor {bare_busy / whole_busy:.0%}"
            print(f"predict {whole_rate:>11,.0f} rows/s {whole_busy:6.2f} µs  {ratio}")


if __name__ == "__main__":
    main()
