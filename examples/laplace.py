"""Calibration of a small net on digits with and without a Laplace posterior, on clean and on shifted images.

Trains nets of one hidden layer on 1,000 digits, without a regularizer and with L2, and on 100, several seeds each, and
compares on 500 others: the net's own probabilities; those averaged over the Laplace posterior of all its weights, by
draws and by the probit formula, and of the last layer's weights alone, with the prior that maximises the marginal
likelihood; all weights with the prior that is best on 297 held-out digits; and as the usual cheap remedy one
temperature, fitted on these digits too. The same on images that are rotated or noisy. A last table has one net at
several ranks.

    python examples/laplace.py [--seeds N] [--steps N] [--results JSON]
"""

import argparse
import time
from pathlib import Path

import keras
import numpy as np
import scipy.ndimage
import scipy.optimize
import scipy.special
from result_files import markdown, save

import sdkeras
from sdkeras.datasets import load_digits

TRAINING, HELD_OUT = 1000, 297
BATCH = 100
UNITS, BINS, RANK = 32, 15, 200
FACTORS = 16.0 ** np.arange(5)  # of the prior precision, on held-out digits
RANKS = (10, 50, 200, 2410)
L2 = 1e-4
# Digits to train on, and strength of L2.
TRAININGS = {"1,000 digits": (1000, 0.0), "1,000 digits, L2": (1000, L2), "100 digits": (100, 0.0)}
SHIFTS = {
    "test digits": lambda images: images,
    "rotated by 45°": lambda images: scipy.ndimage.rotate(images, 45, axes=(2, 1), reshape=False, order=1),
    "noise of 0.3": lambda images: images + 0.3 * np.random.default_rng(0).standard_normal(images.shape),
}


def split(seed):
    """Training, held-out and test digits, in an order of the seed."""
    x, y = load_digits()
    order = np.random.default_rng(seed).permutation(len(x))
    parts = np.split(order, [TRAINING, TRAINING + HELD_OUT])
    return [(x[part], y[part]) for part in parts]


def train(data, seed: int, strength: float, steps: int) -> keras.Model:
    """A tanh net trained by Adam, whose rate decays to 0 so that it ends near a minimum."""
    keras.utils.set_random_seed(seed)
    l2 = keras.regularizers.L2(strength) if strength else None
    options = {"kernel_regularizer": l2, "bias_regularizer": l2}
    hidden = keras.layers.Dense(UNITS, "tanh", **options)
    net = keras.Sequential([keras.Input((8, 8)), keras.layers.Flatten(), hidden, keras.layers.Dense(10, **options)])
    rate = keras.optimizers.schedules.CosineDecay(0.01, steps)
    net.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    net.fit(*data, batch_size=BATCH, epochs=steps * BATCH // len(data[0]), verbose=0)
    return net


def scores(probabilities, labels) -> dict[str, float]:
    """Accuracy, mean negative log-likelihood, and expected calibration error over equally wide bins of confidence."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(np.sum(right[place == k]) - np.sum(confidence[place == k])) for k in range(BINS)]
    likelihood = probabilities[np.arange(len(labels)), labels]
    return {
        "accuracy": float(right.mean()),
        "nll": float(-np.mean(np.log(np.maximum(likelihood, 1e-300)))),
        "ece": float(sum(gaps) / len(labels)),
    }


def temperature(logits, labels) -> float:
    """The temperature at which held-out labels are the most likely."""

    def loss(log):
        z = logits / np.exp(log)
        return float(np.mean(scipy.special.logsumexp(z, axis=1) - z[np.arange(len(labels)), labels]))

    return float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def best_prior(posterior, images, labels):
    """The posterior of the prior precision that makes held-out labels the most likely."""
    others = [posterior.with_prior(factor * posterior.prior_precision) for factor in FACTORS]
    losses = [scores(each.predictive(images, draws=300).probabilities, labels)["nll"] for each in others]
    return others[int(np.argmin(losses))]


def predictions(posterior, last, tuned, images, heat):
    """Probabilities of each way to predict."""
    drawn = posterior.predictive(images)
    return {
        "net alone": scipy.special.softmax(drawn.mean, axis=1),
        "Laplace, 1,000 draws": drawn.probabilities,
        "Laplace, probit": posterior.predictive(images, method="probit").probabilities,
        "Laplace, last layer": last.predictive(images).probabilities,
        "Laplace, held-out prior": tuned.predictive(images).probabilities,
        "net, one temperature": scipy.special.softmax(drawn.mean / heat, axis=1),
    }


def measure(samples: int, strength: float, seeds: int, steps: int):
    """Scores by shift and way to predict, one for each seed, and the posteriors."""
    by_row, posteriors = {}, []
    for seed in range(seeds):
        training, held_out, (images, labels) = split(seed)
        training = tuple(each[:samples] for each in training)
        net = train(training, seed, strength, steps)
        start = time.perf_counter()
        posterior = sdkeras.laplace(net, training, rank=RANK)
        seconds = time.perf_counter() - start
        last = sdkeras.laplace(net, training, rank=RANK, params=f"(^|/){net.layers[-1].name}/")
        tuned = best_prior(posterior, *held_out)
        posteriors.append((posterior, tuned, seconds))
        heat = temperature(net.predict(held_out[0], verbose=0), held_out[1])
        for shift, moved in SHIFTS.items():
            there = moved(images).astype("float32")
            for way, probabilities in predictions(posterior, last, tuned, there, heat).items():
                by_row.setdefault((shift, way), []).append(scores(probabilities, labels))
        print(
            seed,
            posterior,
            [note.code for note in posterior.notes],
            f"held out {tuned.prior_precision:.3g}, temperature {heat:.2f}",
            flush=True,
        )
    return by_row, posteriors


def table(training: str, by_row) -> list[dict]:
    rows = []
    for (shift, way), found in by_row.items():
        row = {"training": training, "images": shift, "prediction": way}
        for name in ("nll", "ece", "accuracy"):
            values = np.array([each[name] for each in found])
            factor = 100 if name != "nll" else 1
            row |= {name: factor * values.mean(), f"{name}_sd": factor * values.std(ddof=min(1, len(values) - 1))}
        rows.append(row)
    return rows


COLUMNS = {
    "training": "{training}",
    "images": "{images}",
    "prediction": "{prediction}",
    "NLL": "{nll:.3f} ± {nll_sd:.3f}",
    "calibration error, %": "{ece:.1f} ± {ece_sd:.1f}",
    "accuracy, %": "{accuracy:.1f} ± {accuracy_sd:.1f}",
}
RANK_COLUMNS = {
    "rank": "{rank}",
    "share of the trace": "{captured:.3f}",
    "log marginal likelihood": "{log_marginal:,.1f}",
    "prior precision": "{prior:.3f}",
    "effective parameters": "{effective:.0f}",
    "test NLL": "{nll:.4f}",
    "NLL, rotated by 45°": "{nll_rotated:.4f}",
}


def ranks(steps: int, which) -> list[dict]:
    """One net with L2 at several ranks; the last is the whole matrix."""
    training, _, (images, labels) = split(0)
    net, rows = train(training, 0, L2, steps), []
    turned = SHIFTS["rotated by 45°"](images).astype("float32")
    for rank in which:
        posterior = sdkeras.laplace(net, training, rank=rank)
        nll, rotated = (scores(posterior.predictive(x).probabilities, labels)["nll"] for x in (images, turned))
        rows.append(
            {
                "rank": posterior.rank,
                "captured": posterior.captured,
                "log_marginal": posterior.log_marginal_likelihood,
                "prior": posterior.prior_precision,
                "effective": posterior.effective_parameters,
                "nll": nll,
                "nll_rotated": rotated,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    tables, facts = [], []
    for name, setting in TRAININGS.items():
        by_row, posteriors = measure(*setting, options.seeds, options.steps)
        tables.append(table(name, by_row))
        facts += [
            {
                "training": name,
                "seed": seed,
                "prior_precision": each.prior_precision,
                "held_out_prior_precision": tuned.prior_precision,
                "regularizer_precision": each.regularizer_precision,
                "log_marginal_likelihood": each.log_marginal_likelihood,
                "effective_parameters": each.effective_parameters,
                "captured": each.captured,
                "newton_decrement": each.newton_decrement,
                "seconds": round(seconds, 1),
            }
            for seed, (each, tuned, seconds) in enumerate(posteriors)
        ]
        print(markdown(tables[-1], COLUMNS), flush=True)
    by_rank = ranks(options.steps, RANKS if options.seeds > 1 else RANKS[:2])
    print(markdown(by_rank, RANK_COLUMNS))
    if options.results:
        save(options.results, *tables, by_rank, command="python examples/laplace.py", posteriors=facts)


if __name__ == "__main__":
    main()
