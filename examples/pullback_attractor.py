"""The attractor of SGD on a function of three weights, whose dimension can be counted: is it below D_s and SD?

The loss of example a is |w - a|^2/2 - A cos(k w_1) cos(k w_2) cos(k w_3), examples are normal. Several hundred thousand
particles take the same minibatches from a long time ago until now: where they are is the pullback attractor. Its
box-counting dimension stands beside D_s of the Lyapunov exponents of the same map and its sharpness dimension, at each
amplitude A and learning rate.

    python examples/pullback_attractor.py [--quick] [--out PNG] [--results JSON]
"""

import argparse
from pathlib import Path

import attrs
import numpy as np
from matplotlib.figure import Figure
from result_files import markdown, save

from sdkeras.dimension.sharpness import sharpness_dimension
from sdkeras.study.topology import box_counting_dimension

WEIGHTS, FREQUENCY, SPREAD = 3, 2.0, 0.5  # d, k, and the standard deviation of a minibatch's mean of a
BOX = 1.0  # particles start evenly in [-BOX, BOX]^d
POINT = 1e-6  # a cloud of this extent is what is left of the start, and shrinks to a point
TRAJECTORIES, FOLLOWED = 12, 200  # sequences of minibatches, and particles on each


@attrs.frozen
class Setting:
    """One training: its amplitude and learning rate."""

    amplitude: float
    learning_rate: float

    def step(self, w: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """w - eta * gradient on a minibatch whose examples have this mean, for each particle, [n, d]."""
        cos, sin = np.cos(FREQUENCY * w), np.sin(FREQUENCY * w)
        slope = np.stack([sin[:, i] * np.delete(cos, i, axis=1).prod(axis=1) for i in range(WEIGHTS)], axis=1)
        return w - self.learning_rate * (w - mean + self.amplitude * FREQUENCY * slope)

    def jacobian(self, w: np.ndarray) -> np.ndarray:
        """I - eta H at each particle, [n, d, d]; H is the same for all minibatches."""
        cos, sin = np.cos(FREQUENCY * w), np.sin(FREQUENCY * w)
        curvature = np.empty((len(w), WEIGHTS, WEIGHTS))
        for i in range(WEIGHTS):
            for j in range(WEIGHTS):
                factors = [sin[:, m] if i != j and m in (i, j) else cos[:, m] for m in range(WEIGHTS)]
                curvature[:, i, j] = (1 if i == j else -1) * np.prod(factors, axis=0)
        hessian = np.eye(WEIGHTS) + self.amplitude * FREQUENCY**2 * curvature
        return np.eye(WEIGHTS) - self.learning_rate * hessian


@attrs.frozen
class Exponents:
    """Of one sequence of minibatches, each shape [d], per step, descending."""

    lyapunov: np.ndarray  # mean of ln R_ii
    local: np.ndarray  # mean of ln sigma_k of a step's Jacobian, over steps and particles
    supremum: np.ndarray  # the same with the largest over the particles at each step


def information_dimension(points: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Slope of the entropy of the boxes' shares against ln(1/size), and the difference of its halves; None if too few.

    Scales at which the points fill at most a tenth as many boxes as there are points, for which Miller's correction of
    the entropy is small. Boxes are those of four grids.
    """
    unit, entropies = (points - points.min(axis=0)) / np.ptp(points, axis=0).max(), []
    for place in np.random.default_rng(seed).random((4, WEIGHTS)):
        rows = []
        for k in range(3, 21):
            keys = np.floor((unit + place) * 2.0**k).astype(np.int64) @ (2 ** (21 * np.arange(WEIGHTS)))
            counts = np.unique(keys, return_counts=True)[1]
            if len(counts) > len(points) / 10:
                break
            shares = counts / len(points)
            rows.append(-shares @ np.log2(shares) + (len(counts) - 1) / (2 * len(points) * np.log(2)))
        entropies.append(rows)
    count = min(map(len, entropies))
    if count < 5:
        return None
    mean = np.mean([rows[:count] for rows in entropies], axis=0)
    middle = count // 2
    coarse, fine = (np.polyfit(np.arange(len(part)), part, 1)[0] for part in (mean[: middle + 1], mean[middle:]))
    return float(np.polyfit(np.arange(count), mean, 1)[0]), float(abs(coarse - fine))


def minibatches(seed: int, steps: int) -> np.ndarray:
    return SPREAD * np.random.default_rng([seed, 1]).standard_normal((steps, WEIGHTS))


def started(seed: int, particles: int) -> np.ndarray:
    return np.random.default_rng([seed, 2]).uniform(-BOX, BOX, (particles, WEIGHTS))


def attractor(setting: Setting, particles: int, steps: int, seed: int = 0) -> np.ndarray:
    """Where the particles are after the same steps."""
    w = started(seed, particles)
    for mean in minibatches(seed, steps):
        w = setting.step(w, mean)
    return w


def exponents(setting: Setting, steps: int, seed: int) -> Exponents:
    """Exponents along the second half of the steps."""
    w, frame = started(seed, FOLLOWED), np.broadcast_to(np.eye(WEIGHTS), (FOLLOWED, WEIGHTS, WEIGHTS))
    sums = np.zeros((3, WEIGHTS))
    for number, mean in enumerate(minibatches(seed, steps)):
        jacobian = setting.jacobian(w)
        frame, triangle = np.linalg.qr(jacobian @ frame)
        if number >= steps // 2:
            logs = np.log(np.linalg.svd(jacobian, compute_uv=False))
            growth = np.log(np.abs(np.diagonal(triangle, axis1=1, axis2=2)))
            sums += growth.mean(axis=0), logs.mean(axis=0), logs.max(axis=0)
        w = setting.step(w, mean)
    lyapunov, local, supremum = sums / (steps - steps // 2)
    return Exponents(np.sort(lyapunov)[::-1], local, supremum)


def with_interval(rows: list[np.ndarray]) -> tuple[float, list[float]]:
    """The dimension of mean exponents, and its 95 % interval by the jackknife over sequences."""
    values = np.array(rows)
    whole, count = sharpness_dimension(values.mean(axis=0)), len(values)
    without = np.array([sharpness_dimension(np.delete(values, k, axis=0).mean(axis=0)) for k in range(count)])
    half = 2.2 * np.sqrt((count - 1) * np.var(without))  # Student's t for 11 degrees of freedom
    return whole, [max(0.0, whole - half), min(WEIGHTS, whole + half)]


def row(setting: Setting, points: np.ndarray, steps: int) -> dict:
    """The numbers of one setting; a cloud that has shrunk to a point has the dimension 0."""
    is_point = np.ptp(points, axis=0).max() < POINT
    boxes = box_counting_dimension(np.zeros((2, 1)) if is_point else points)
    information = (0.0, 0.0) if is_point else information_dimension(points)
    found = [exponents(setting, steps, 100 + seed) for seed in range(TRAJECTORIES)]
    d_s, interval = with_interval([each.lyapunov for each in found])
    local, supremum = (with_interval([getattr(each, name) for each in found])[0] for name in ("local", "supremum"))
    return {
        "amplitude": setting.amplitude,
        "learning_rate": setting.learning_rate,
        "extent": float(np.ptp(points, axis=0).max()),
        "boxes": boxes.value,
        "boxes_interval": None if boxes.interval is None else list(boxes.interval),
        "information": information and information[0],
        "information_interval": information and [information[0] - information[1], information[0] + information[1]],
        "d_s": d_s,
        "d_s_interval": interval,
        "local": local,
        "supremum": supremum,
    }


def shown(row: dict) -> dict:
    """The row with its dimensions and their intervals as texts."""
    texts = {}
    for name in ("boxes", "information", "d_s"):
        ends = row[f"{name}_interval"]
        texts[f"{name}_text"] = "undetermined" if ends is None else "{:.2f} [{:.2f}, {:.2f}]".format(row[name], *ends)
    return row | texts


def draw(rows: list[dict], clouds: list[np.ndarray]) -> Figure:
    """The attractors, seen along the third weight, above the dimensions."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    some = range(0, len(rows), max(1, len(rows) // 4))
    axes = top.subplots(1, len(some))
    for each, k in zip(axes, some, strict=True):
        each.plot(*clouds[k][:200_000, :2].T, ",", color="#1f4e79", alpha=0.2)
        each.set(title=f"A = {rows[k]['amplitude']:g}, rate {rows[k]['learning_rate']:g}", xlabel="w_1", ylabel="w_2")
    each, places = bottom.subplots(), np.arange(len(rows))
    labels = {"boxes": "box-counting dimension", "information": "information dimension", "d_s": "D_s"}
    for shift, ((name, label), marker) in enumerate(zip(labels.items(), "oDs", strict=True)):
        known = [k for k, row in enumerate(rows) if row[name] is not None]
        values = np.array([rows[k][name] for k in known])
        ends = np.array([rows[k][f"{name}_interval"] for k in known])
        errors = np.abs(ends.T - values)
        each.errorbar(places[known] + 0.1 * shift, values, errors, fmt=marker, capsize=4, label=label)
    each.plot(places, [row["local"] for row in rows], "^", label="SD, mean over the attractor")
    each.plot(places, [row["supremum"] for row in rows], "v", label="SD, supremum over the attractor")
    each.set_xticks(places, [f"{row['amplitude']:g}\n{row['learning_rate']:g}" for row in rows])
    each.set(xlabel="amplitude A, learning rate", ylabel="dimension")
    each.legend()
    return figure


AMPLITUDES = {0.5: (1.0, 1.1, 1.15, 1.2, 1.3), 0.9: (0.5, 0.55, 0.6, 0.65)}
SETTINGS = [Setting(amplitude, rate) for rate, amplitudes in AMPLITUDES.items() for amplitude in amplitudes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 particles and short trajectories, in a minute")
    parser.add_argument("--out", type=Path, default=Path("pullback_attractor.png"))
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    particles, steps, long = (20_000, 300, 600) if options.quick else (600_000, 400, 4000)
    rows, clouds = [], []
    for setting in SETTINGS:
        points = attractor(setting, particles, steps)
        rows.append(row(setting, points, long))
        clouds.append(points)
        print(shown(rows[-1]))
    columns = {
        "A": "{amplitude:g}",
        "rate": "{learning_rate:g}",
        "extent": "{extent:.2g}",
        "box-counting dimension": "{boxes_text}",
        "information dimension": "{information_text}",
        "D_s": "{d_s_text}",
        "SD, mean over the attractor": "{local:.2f}",
        "SD, supremum": "{supremum:.2f}",
    }
    print(markdown([shown(row) for row in rows], columns))
    draw(rows, clouds).savefig(options.out, dpi=100)
    print(f"written: {options.out}")
    if options.results is not None:
        settings = {"particles": particles, "steps": steps, "trajectories": TRAJECTORIES, "long": long}
        save(options.results, rows, command="python examples/pullback_attractor.py", settings=settings)


if __name__ == "__main__":
    main()
