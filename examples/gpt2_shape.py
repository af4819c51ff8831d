"""A decoder of GPT-2 small's shape, 124 million parameters with random weights, analysed in a given memory.

The plan comes first, from one timed gradient; if it needs more memory than it may take, nothing is started. Tokens are
random unless --text takes them from the documentation of Python (bytes as ids). Then the analysis: extremes and trace
of the Hessian, and SD by the paper's SD-KDE and by sdkeras' own quadrature, without reorthogonalisation: a basis of 20
steps would take 10 GB more (--reorthogonalize keeps it). At the end the predicted and the measured peak of memory stand
side by side.

    python examples/gpt2_shape.py [--memory GB] [--max-hvps N] [--save FOLDER] [--width W --depth D --vocabulary V]

--save writes gpt2.keras and tokens.npz (0.5 GB) and analyses nothing, for the command line:

    sdkeras analyze FOLDER/gpt2.keras --data FOLDER/tokens.npz --batch-size 2 --samples 2 --memory 14 --max-hvps 180 \
        --estimator sd-kde --estimator slq --set slq.num_steps=20 --set sd-kde.num_steps=20
"""

import argparse
import time
from pathlib import Path

import keras
import numpy as np
from decoder import build, compiled

import sdkeras
from sdkeras.datasets import load_documentation_text
from sdkeras.linalg.memory import peak_memory
from sdkeras.runs.analyze import plan

WINDOWS = 64  # that minibatches are drawn from


def tokens(vocabulary: int, context: int, text: bool) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [windows, context], and the same one further on."""
    if text:
        codes = np.frombuffer(load_documentation_text().encode(), np.uint8)[: WINDOWS * context + 1] % vocabulary
    else:
        codes = np.random.default_rng(0).integers(0, vocabulary, WINDOWS * context + 1)
    codes = codes.astype("int32")
    return codes[:-1].reshape(WINDOWS, context), codes[1:].reshape(WINDOWS, context)


def settings(options: argparse.Namespace) -> dict:
    """What `sdkeras.analyze` is told: few steps and few runs, and the Hessian of one batch in place of all data."""
    steps = options.steps
    run = {"num_steps": steps, "reorthogonalize": options.reorthogonalize}
    return {
        "batch_size": 2,
        "samples": 2,
        "memory_gb": options.memory,
        "max_hvps": options.max_hvps,
        "estimators": ("sd-kde", "slq"),
        "settings": {
            "sd-kde": run,
            "slq": run,
            "lanczos": run,
            "randomized-trace": {"num_probes": 4},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A decoder of GPT-2 small's shape, analysed in a given memory.")
    parser.add_argument("--memory", type=float, default=14.0, help="GB for the whole process; default 14")
    parser.add_argument("--max-hvps", type=int, default=180, help="Hessian-vector products; default 180")
    parser.add_argument("--steps", type=int, default=20, help="Lanczos steps of a run; default 20")
    parser.add_argument("--reorthogonalize", action="store_true", help="keep the bases of the runs")
    parser.add_argument("--learning-rate", type=float, default=0.01, help="of plain SGD; default 0.01")
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--context", type=int, default=64, help="tokens of a sample; GPT-2 takes up to 1,024")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--text", action="store_true", help="real text in place of random tokens")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write model and data there, and analyse nothing")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write run.json there")
    options = parser.parse_args()
    started = time.perf_counter()
    keras.utils.set_random_seed(0)
    model = build(options.vocabulary, options.context, options.width, options.depth, options.heads)
    compiled(model, keras.optimizers.SGD(options.learning_rate))
    x, y = tokens(options.vocabulary, options.context, options.text)
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        model.save(options.save / "gpt2.keras")
        np.savez(options.save / "tokens.npz", x=x, y=y)
        print(f"{model.count_params():,} parameters are in {options.save / 'gpt2.keras'}.")
        return
    told = settings(options)
    planned = plan(model, (x, y), **told)
    print(
        f"planned: {planned.num_parameters:,} parameters, {planned.num_hvps} products, "
        f"{planned.peak_memory / 1e9:.1f} GB at most, {planned.seconds / 60:.0f} minutes",
        flush=True,
    )
    if planned.peak_memory > options.memory * 1e9:
        raise SystemExit(f"that is more than {options.memory:g} GB; give more (--memory) or a smaller model (--depth).")
    run = sdkeras.analyze(model, (x, y), **told)
    print(run)
    if options.json is not None:
        run.save(options.json)
    print(table(run))
    print(
        f"\nmeasured: {run.provenance.num_hvps} products, {peak_memory() / 1e9:.1f} GB at most, "
        f"{(time.perf_counter() - started) / 60:.0f} minutes with the plan"
    )


def table(run: sdkeras.Analysis) -> str:
    """SD of each estimator, as a markdown table."""
    lines = ["| estimator | SD | interval | codimension | runs x steps |", "|---|---|---|---|---|"]
    for one in run.estimates:
        interval = "none" if one.interval is None else "[{:,.0f}, {:,.0f}]".format(*one.interval)
        lines.append(
            f"| {one.estimator} | {one.value:,.0f} | {interval} | {one.codimension:,.0f} | "
            f"{one.num_runs} x {one.num_steps} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
