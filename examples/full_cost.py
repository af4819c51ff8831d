"""What a study costs with --full, estimated from the runs of the same study without it.

    python examples/full_cost.py GRID.toml DIR

DIR is the folder of `sdkeras study run GRID.toml --out DIR`; one run of each of a few settings is enough. From each run
that is done come the seconds of a training step, of a Hessian-vector product and of a pair of iterates; each run of the
full grid takes those of the measured run whose batch size is nearest. Products are counted as if no estimator ended
early, so the result is about the most. Seconds are of one thread; a study uses as many as the machine has cores.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import attrs

from sdkeras import Analysis
from sdkeras.estimators.registry import get_estimator
from sdkeras.estimators.select import configured
from sdkeras.study.definition import ESTIMATOR_OF, Study, read_study
from sdkeras.study.run_files import RunFolder, runs_folder


@attrs.frozen
class Cost:
    """What one run took: its steps and seconds, and seconds of a product and of the trajectories."""

    batch_size: int
    steps_per_epoch: float
    seconds_per_step: float
    seconds_per_product: float
    products_per_minibatch: float  # of an exact spectrum
    other_products: int  # of sharpness, trace and verification
    trajectories: float


def measured(folder: RunFolder) -> Cost | None:
    """The cost of a run that is done; None of another one."""
    trained, taken = folder.trained(), folder.measured()
    if trained is None or taken is None or not folder.analysis.exists():
        return None
    analysis = Analysis.load(folder.analysis)
    exact = next((each for each in analysis.estimates if each.estimator == "exact"), None)
    of_analysis, products = analysis.provenance.seconds, analysis.provenance.num_hvps
    return Cost(
        int(trained.settings["batch_size"]),
        trained.num_steps / trained.num_epochs,
        trained.seconds / trained.num_steps,
        of_analysis / products,
        0.0 if exact is None else exact.num_hvps / exact.num_runs,
        products - sum(each.num_hvps for each in analysis.estimates),
        max(0.0, taken.seconds - of_analysis),
    )


def steps_of(name: str, settings: Mapping[str, object]) -> int:
    """Lanczos steps of a run of the estimator of this measure."""
    return configured(get_estimator("spectrum", ESTIMATOR_OF[name]), settings).num_steps


def estimated(full: Study, usual: Study, settings: Mapping[str, object], costs: list[Cost]) -> tuple[float, float]:
    """(seconds of training, of measuring) of one run of the full grid."""
    size = int(str(settings["batch_size"]))
    cost = min(costs, key=lambda each: abs(math.log(each.batch_size / size)))
    steps = full.steps or (full.epochs or 0) * cost.steps_per_epoch * cost.batch_size / size
    analysis, measures = full.analysis, full.measures
    spectra = [steps_of(name, measures[name]) for name in ESTIMATOR_OF if name in measures and name != "sd"]
    # Without a number of runs only the limit on products is known.
    products = min(sum(spectra) * analysis.get("runs", math.inf) if spectra else 0, analysis.get("max_hvps", math.inf))
    products += measures.get("sd", {}).get("minibatches", 0) * cost.products_per_minibatch
    larger_set = analysis.get("samples", 1) / usual.analysis.get("samples", 1)
    products += cost.other_products * max(1.0, larger_set)
    # Steps and losses grow with the iterates, losses with the examples too, and distances with the iterates squared.
    iterates = full.trajectory.steps / usual.trajectory.steps
    longer = iterates * max(iterates, full.trajectory.examples / usual.trajectory.examples)
    measuring = products * len(full.maps) * cost.seconds_per_product + longer * cost.trajectories
    return steps * cost.seconds_per_step, measuring


def main() -> None:
    parser = argparse.ArgumentParser(description="What a study costs with --full.")
    parser.add_argument("grid", metavar="GRID.toml")
    parser.add_argument("folder", type=Path, metavar="DIR")
    options = parser.parse_args()
    usual, full = read_study(options.grid), read_study(options.grid, full=True)
    folders = (RunFolder(path) for path in sorted(runs_folder(options.folder).iterdir()))
    costs = [cost for cost in map(measured, folders) if cost is not None]
    if not costs:
        raise SystemExit(f"{options.folder} holds no run that is done; begin with sdkeras study run without --full.")
    both = [estimated(full, usual, run.settings, costs) for run in full.runs]
    training, measuring = (sum(each) / 3600 for each in zip(*both, strict=True))
    print(
        f"{len(full.runs)} runs: {training:.1f} hours of training and {measuring:.1f} hours of measuring by one thread,"
    )
    print(f"from {len(costs)} runs without --full; {(training + measuring) / 2:.1f} hours on two cores.")


if __name__ == "__main__":
    main()
