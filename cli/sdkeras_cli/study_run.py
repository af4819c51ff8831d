"""`sdkeras study run GRID.toml --out DIR`: the trainings of a grid with their measures, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sdkeras.errors import counted
from sdkeras.runs.declare import EXPERT, WHAT
from sdkeras.study.backends import LOKY, check_backend
from sdkeras.study.definition import read_study
from sdkeras.study.run_files import DONE, FAILED, TRAINED, StudyPlan, plan_study, runs_folder
from sdkeras_cli import options
from sdkeras_cli.options import COUNT
from sdkeras_cli.output import say, say_written

# Failed runs whose reasons are said.
_SHOWN = 5
# Exit status where runs of the study failed and others did not; where all did it is that of an SdkerasError.
_SOME_FAILED = 5

if TYPE_CHECKING:
    from sdkeras.study.runner import Finished


@options.command("sdkeras study run grid.toml --out my-study --jobs 2")
@click.argument("grid", type=click.Path(), metavar="GRID.toml")
@options.out("the study", type=click.Path(file_okay=False), required=True)
@options.option("--full", is_flag=True, group=WHAT, help="Use the sizes under [full] of the file.")
@options.option(
    "--jobs",
    type=COUNT,
    metavar="N",
    group=EXPERT,
    help="Runs under way at once; default one per core, or per thread of the cluster.",
)
@options.option(
    "--backend",
    default=LOKY,
    show_default=True,
    metavar="ADDRESS",
    group=EXPERT,
    help="Where the runs are done: loky (processes here), dask://HOST:PORT, ray://HOST:PORT or ray://auto; its workers "
    "must see DIR and the folder of GRID.toml at the same paths.",
)
@options.option("--retry", is_flag=True, group=WHAT, help="Run failed runs again.")
@options.option("--dry-run", is_flag=True, help="Show the runs and their state; do nothing.")
@options.quiet
@options.debug
def command(
    grid: str, out: str, full: bool, jobs: int | None, backend: str, retry: bool, dry_run: bool, quiet: bool
) -> int:
    """Train and measure the runs that GRID.toml defines, in the folder DIR.

    The same command continues where an earlier one stopped, and adds the runs of values that were added to the grid.
    A run that fails stops no other. The exit status is 5 if some failed, and 2 if all did.
    Modules and relative paths in GRID.toml are looked for in its folder. The least that it holds:

    \b
      [study]
      model = "models:net"      # net(learning_rate, ...) -> compiled keras.Model
      data = "models:data"      # data() -> (x, y), (x_test, y_test)
      epochs = 20               # or steps = 5000
      [grid]                    # arguments of net; batch_size and seed
      learning_rate = [0.1, 0.2]
      batch_size = [16, 64]
      [measures]
      slq = {}
      sharpness = {}

    \b
    [study] as well: name, text, test_data (data and test_data may be files, as for
      analyze), stop = { loss_below, loss_above, accuracy_below, accuracy_above },
      class_weight = { 0 = 1.0, 1 = 9.0 }, as for fit
    [measures]: sd = { minibatches }, slq, sd-slq, sd-kde, sd-ps (fields of the
      estimator), lambda_1, sharpness, trace, and of trajectories of the weights
      e_alpha, ph_dimension = { trajectory = "forward" and/or "backward",
      metric = "euclidean" and/or "data" }
    [trajectory]: steps, every, alpha, examples, projection
    [analysis]: learning_rate = 0.1, "peak", "mean" or "step:N" of a schedule,
      samples, mode, map, dtype, product_mode, jit, runs, tolerance,
      max_hvps, time_limit, as for analyze; map = ["auto", "hessian"] measures the
      optimizer's own step and the paper's map, in columns of their own
    [full.study], [full.grid] and so on: what --full puts over these
    """
    check_backend(backend)
    study = read_study(grid, full=full)
    plan = plan_study(study, out, jobs=jobs)
    cluster = backend if jobs is None and backend != LOKY else ""
    if dry_run:
        for each in plan.runs:
            why = "" if each.failure is None else f" ({each.failure.words})"
            say(f"{each.run.name}: {each.state}{why}")
    if dry_run or not quiet:
        for line in (*plan.notes, f"{_standing(plan)}; {_estimate(plan, retry, cluster)}"):
            say(line)
    if dry_run:
        return 0
    code = Path(grid).resolve().parent
    tell, notice = (None, None) if quiet else (_tell, say)
    from sdkeras.study.runner import run_study  # it loads what starts processes

    after = run_study(study, out, code=code, jobs=jobs, retry=retry, backend=backend, progress=tell, notice=notice)
    return _end(after, out, quiet)


def _end(after: StudyPlan, out: str, quiet: bool) -> int:
    """Says how the study stands and what failed; returns the exit status."""
    failed = [each for each in after.runs if each.state == FAILED]
    if not quiet:
        click.echo(_standing(after))
        for each in failed[:_SHOWN]:
            say(f"{each.run.name} failed: {'' if each.failure is None else each.failure.words}")
        if len(failed) > _SHOWN:
            say(f"{len(failed) - _SHOWN:,} more failed, as --dry-run lists them.")
        say_written([out])
        if sum(each.state == DONE for each in after.runs) > 1:
            click.echo(f"next: sdkeras study correlate {click.format_filename(out)}")
    if not failed:
        return 0
    reasons, them = ("the reason", "it") if len(failed) == 1 else ("the reasons", "them")
    say(
        f"sdkeras: error: {len(failed):,} of {counted(len(after.runs), 'run')} failed, with {reasons} in "
        f"{runs_folder(out)}/NAME/failed.json; --retry runs {them} again.",
        err=True,
    )
    return _SOME_FAILED


def _standing(plan: StudyPlan) -> str:
    done = sum(each.state == DONE for each in plan.runs)
    trained = sum(each.state == TRAINED for each in plan.runs)
    return f"{done} of {counted(len(plan.runs), 'run')} {'is' if done == 1 else 'are'} done" + (
        f", {trained} only trained" if trained else ""
    )


def _estimate(plan: StudyPlan, retry: bool, cluster: str) -> str:
    """What is to do and how long it takes; on a cluster whose size is not known yet, where."""
    to_do = len(plan.to_do(retry))
    if cluster:
        return f"{to_do} to do, on {cluster}"
    jobs = f"{plan.jobs} side by side"
    if plan.seconds is None:
        return f"{to_do} to do, {jobs}; how long is known after the first"
    return f"{to_do} to do, {jobs}, in about {_duration(plan.seconds * to_do / plan.jobs)}"


def _tell(finished: Finished) -> None:
    how = "done" if finished.failure is None else f"FAILED in {finished.failure.words}"
    left = f"; {_duration(finished.remaining)} left" if finished.num_finished < finished.num_to_do else ""
    say(
        f"[{finished.num_finished}/{finished.num_to_do}] {finished.run.name} {how}, {_duration(finished.seconds)}{left}"
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
