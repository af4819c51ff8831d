"""A decoder of GPT-2 small's shape, 124 million parameters with random weights, analysed in a given memory.

The plan comes first, from one timed gradient; if it exceeds the memory limit, nothing is started. The analysis follows:
extremes and trace of the Hessian, and SD by the paper's SD-KDE and by sdkeras' own quadrature, without
reorthogonalisation: a basis of 20 steps would take 10 GB more (--reorthogonalize keeps it). The last line has the
measured peak of memory, to compare with the predicted one. Tokens are random unless --text takes them from the
documentation of Python (bytes as ids).

    python examples/gpt2_shape.py [--memory GB] [--max-hvps N] [--save FOLDER] [--width W --depth D --vocabulary V]
        [--results JSON]

--save writes gpt2.keras and tokens.npz (0.5 GB) and analyses nothing, for the command line:

    sdkeras analyze FOLDER/gpt2.keras --data FOLDER/tokens.npz --batch-size 2 --samples 2 --memory 14 --max-hvps 180 \
        --estimator sd-kde --estimator slq --set slq.num_steps=20 --set sd-kde.num_steps=20
"""

import argparse
import sys
import time
from pathlib import Path

import keras
import numpy as np
from decoder import build, compiled
from result_files import interval_text, markdown, save

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
    """Options of `sdkeras.analyze`: few steps and few runs, and the Hessian of one batch in place of all data."""
    steps = options.steps
    run = {"num_steps": steps, "reorthogonalize": options.reorthogonalize}
    return {
        "batch_size": 2,
        "samples": 2,
        "memory_gb": options.memory,
        "max_hvps": options.max_hvps,
        "micro_batch": options.micro_batch,
        "scratch": options.scratch,
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
    parser.add_argument("--scratch", metavar="DIR", help="bases that do not fit the memory are kept there")
    parser.add_argument("--micro-batch", type=int, metavar="N", help="compute batches in parts of N samples")
    parser.add_argument("--learning-rate", type=float, default=0.01, help="of plain SGD; default 0.01")
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--context", type=int, default=64, help="tokens of a sample; GPT-2 takes up to 1,024")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--text", action="store_true", help="real text in place of random tokens")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write model and data there, and analyse nothing")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write run.json there")
    parser.add_argument("--results", type=Path, metavar="JSON", help="save the numbers of the tables there")
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
    chosen = settings(options)
    planned = plan(model, (x, y), **chosen)
    print(
        f"planned: {planned.num_parameters:,} parameters, {planned.num_hvps} Hessian-vector products, "
        f"peak memory {planned.peak_memory / 1e9:.1f} GB, {planned.seconds / 60:.0f} minutes",
        flush=True,
    )
    if planned.peak_memory > options.memory * 1e9:
        raise SystemExit(f"that is more than {options.memory:g} GB; give more (--memory) or a smaller model (--depth).")
    run = sdkeras.analyze(model, (x, y), **chosen)
    print(run)
    if options.json is not None:
        run.save(options.json)
    rows = [
        {
            "estimator": one.estimator,
            "sd": one.value,
            "interval": one.interval,
            "codimension": one.codimension,
            "num_runs": one.num_runs,
            "num_steps": one.num_steps,
        }
        for one in run.estimates
    ]
    spent = {
        "command": "python examples/gpt2_shape.py " + " ".join(sys.argv[1:]),
        "planned_peak_gb": planned.peak_memory / 1e9,
        "peak_gb": peak_memory() / 1e9,
        "num_hvps": run.provenance.num_hvps,
        "minutes": (time.perf_counter() - started) / 60,
    }
    print(table(rows))
    print(
        f"\nmeasured: {spent['num_hvps']} Hessian-vector products, peak memory {spent['peak_gb']:.1f} GB, "
        f"{spent['minutes']:.0f} minutes including the plan"
    )
    if options.results is not None:
        save(options.results, rows, [spent])


def table(rows: list[dict]) -> str:
    columns = {
        "estimator": "{estimator}",
        "SD": "{sd:,.0f}",
        "interval": "{interval_text}",
        "codimension": "{codimension:,.0f}",
        "runs x steps": "{num_runs} x {num_steps}",
    }
    return markdown([row | {"interval_text": interval_text(row["interval"])} for row in rows], columns)


if __name__ == "__main__":
    main()
