"""Time and memory of an analysis as sizes grow, beside what its plan says: `make bench-growth`.

Each point is one plan and one analysis, in a process each, so that the peak of its memory is its own. Steps, probes
and runs are fixed: what grows is their cost.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence

import common
import keras
from common import CE, mlp

import sdkeras
from sdkeras.linalg.memory import peak_memory, used_memory
from sdkeras.results.progress import Progress
from sdkeras.runs.analyze import plan

_SETTINGS = {
    "lanczos": {"num_steps": 20, "min_steps": 20},
    "randomized-trace": {"num_probes": 16, "tolerance": 1e-9},
    "slq": {"num_steps": 20},
}
_RUNS, _INPUTS = 4, 32
# By axis: its unit, and points of (width, hidden layers, batch size, examples of the data-set Hessian).
AXES = {
    "weights": [(width, 2, 32, 32) for width in (17, 80, 295, 978, 3140, 5455)],
    "batch size": [(256, 2, batch, batch) for batch in (32, 128, 512, 2048, 8192)],
    "examples": [(256, 2, 128, examples) for examples in (512, 2048, 8192, 32768)],
    "depth": [(64, depth, 128, 128) for depth in (2, 4, 8, 16, 32)],
}
# Points to which the exponent is fitted: below them it is the calls that cost.
_LAST = 3


def one(planned: bool, width: int, depth: int, batch: int, examples: int) -> dict:
    """A plan, or an analysis with its stages, of one point; memory in bytes beyond what the process began with."""
    keras.utils.set_random_seed(0)
    model = mlp(_INPUTS, width, depth)
    model.compile(keras.optimizers.SGD(0.1), CE)
    data = common.batch_of(model, max(examples, 2 * batch))
    options = {"batch_size": batch, "samples": examples, "runs": _RUNS, "settings": _SETTINGS}
    before, start = used_memory(), time.perf_counter()
    if planned:
        cost = plan(model, data, **options)
        return {
            "seconds": cost.seconds,
            "memory": cost.peak_memory,
            "products": cost.num_hvps - (cost.num_minibatches or 0),
        }
    marks: list[tuple[str, float]] = []

    def progress(step: Progress) -> None:
        if not marks or marks[-1][0] != step.stage:
            marks.append((step.stage, time.perf_counter()))

    run = sdkeras.analyze(model, data, progress=progress, **options)
    end = time.perf_counter()
    ends = [at for _, at in marks[1:]] + [end]
    stages: dict[str, float] = {}
    for (stage, began), until in zip(marks, ends, strict=True):
        stages[stage] = stages.get(stage, 0.0) + until - began
    edge = run.edge_of_stability
    return {
        "size": model.count_params(),
        "stages": stages,
        "seconds": end - start,
        "memory": peak_memory(),
        "own": peak_memory() - before,
        "products": run.provenance.num_hvps - (0 if edge is None else edge.batch_sharpness_minibatches),
    }


def in_a_process(planned: bool, point: Sequence[int]) -> dict:
    command = [sys.executable, __file__, json.dumps([planned, *point])]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])


def section(axis: str) -> str:
    """The table of an axis, with the fitted exponents below."""
    points = AXES[axis]
    place = {"weights": None, "batch size": 2, "examples": 3, "depth": 1}[axis]
    costs, runs = zip(*((in_a_process(True, p), in_a_process(False, p)) for p in points), strict=True)
    sizes = [run["size"] if place is None else point[place] for point, run in zip(points, runs, strict=True)]
    stages = list(runs[-1]["stages"])
    rows = []
    for size, cost, run in zip(sizes, costs, runs, strict=True):
        times = [f"{run['stages'].get(stage, 0.0):.2g}" for stage in stages]
        ratios = [ratio(cost[key], run[key]) for key in ("seconds", "memory", "products")]
        rows.append([f"{size:,}", *times, f"{run['seconds']:.3g}", f"{run['memory'] / 1e9:.2f}", *ratios])
        print(axis, " | ".join(rows[-1]), flush=True)
    fits = [[run["stages"].get(stage, 0.0) for run in runs] for stage in stages]
    fits += [[run[key] for run in runs] for key in ("seconds", "own")]
    exponents = [f"{common.exponent(sizes[-_LAST:], ys[-_LAST:]):.2f}" for ys in fits]
    header = [axis, *(f"{stage}, s" for stage in stages), "whole, s", "peak, GB"]
    header += ["planned / actual seconds", "memory", "products"]
    return f"## {axis.capitalize()}\n\n{common.table(header, [*rows, ['exponent', *exponents, '', '', '']])}\n"


def ratio(planned: float, actual: float) -> str:
    value = f"{planned / actual:.2f}"
    return value if 0.7 <= planned / actual <= 1.4 else f"**{value}**"


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(one(*json.loads(sys.argv[1]))))
        return
    common.write("growth.md", f"{common.machine()}\n\n" + "".join(section(axis) for axis in AXES))


if __name__ == "__main__":
    main()
