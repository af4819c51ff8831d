"""sdkeras beside its peers on PyTorch, on the same weights and batch: `make bench-peers`.

Two processes of one thread each measure in turn, in process CPU time; the least of several rounds counts. First the
gradient, products, the largest eigenvalue, a probe of the trace and the Laplace posterior must agree with PyTorch; a
library whose products do not is left out. `--only` measures the rows it finds and leaves the others as they are.
"""

import argparse
import datetime
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import keras
import numpy as np
from common import GENERATOR, NETS

import sdkeras
from sdkeras.datasets import load_digits

PEERS = ("torch, retained graph", "PyHessian", "hessian-eigenthings", "curvlinops", "laplace-torch")
HEADER = ("net", "work", "sdkeras", *PEERS, "ahead of all", "measured")
PRODUCTS = ("HVP", "GGN product", "empirical Fisher product")
TODAY = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
# The net of the Laplace posterior, small enough for a dense precision.
DIGITS, PRIOR = "digits 1.2k", 1.0
Works = dict[str, Callable[[], object]]
EPS = float(np.finfo(np.float32).eps)
# Sums of float32 products over a batch, in another order: a few eps in practice; single products are good to 3-10.
TOLERANCE = 100 * EPS
# Seconds that a row may take in several rounds; one that takes longer has one round.
PATIENCE, MOST_ROUNDS = 4.0, 12


class Peer:
    """The process with PyTorch."""

    def __init__(self, python: str) -> None:
        script = str(common.FOLDER / "peers_torch.py")
        self.process = subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = json.loads(self._line())["versions"]

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("the process with PyTorch has ended")
        return line

    def ask(self, **asked: object) -> dict:
        assert self.process.stdin is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return json.loads(self._line())


def operators(net: str, H: sdkeras.HessianOperator) -> dict[str, sdkeras.HessianOperator]:
    """By the product that they are known by. Peers take each place of a sequence for an example of the Fisher."""
    G, F = sdkeras.GaussNewtonOperator(H.loss), sdkeras.FisherOperator(H.loss, kind="empirical")
    known = dict(zip(PRODUCTS, (H, G, F), strict=True))
    return {name: known[name] for name in PRODUCTS[: 2 if "transformer" in net else 3]}


def own_works(net: str, known: dict[str, sdkeras.HessianOperator], exact: np.ndarray | None) -> Works:
    H, G = known["HVP"], known["GGN product"]
    v, rows = np.ones(H.size, np.float32), GENERATOR.standard_normal((block_of(net), H.size)).astype(np.float32)
    spectrum, trace = sdkeras.get_estimator("spectrum", "slq"), sdkeras.get_estimator("trace", "randomized-trace")
    top = sdkeras.get_estimator("eigenpairs", "lanczos")(num_largest=10, num_smallest=0, num_steps=1000, tolerance=1e-3)
    works = {
        "HVP": lambda: H.matvec(v),
        "block": lambda: H.rows(rows),
        "SLQ 40": lambda: spectrum(num_steps=40).estimate(H, seed=0),
        "SLQ 100": lambda: spectrum(num_steps=100).estimate(H, seed=0),
        "top 10": lambda: top.estimate(H, seed=0),
        "Hutch++ 60": lambda: trace(num_probes=60, method="hutch++").estimate(H, seed=0),
        **{name: lambda operator=known[name]: operator.matvec(v) for name in PRODUCTS[1:] if name in known},
        "XTrace 60, GGN": lambda: trace(num_probes=60, method="xtrace").estimate(G, seed=0),
    }
    if exact is not None:
        works["XDiag 60, GGN"] = lambda: departure(sdkeras.diagonal(G, num_products=60).values, exact)
    return works


def departure(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def exact_diagonal(G: sdkeras.HessianOperator) -> np.ndarray:
    """From products with all unit vectors."""
    parts = np.split(np.arange(G.size), range(256, G.size, 256))
    return np.concatenate([G.rows(np.eye(len(k), G.size, k[0], np.float32))[np.arange(len(k)), k] for k in parts])


def told(peer: Peer, net: str, **arrays: object) -> dict:
    """The peers' answer on a net."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "net.npz")
        np.savez(path, **arrays)
        return peer.ask(net=net, path=path)


def check(net: str, checks: dict[str, tuple[float, float]]) -> dict[str, str]:
    """Errors with their bounds in words; ends the program where one is larger."""
    for name, (error, bound) in checks.items():
        if not error <= bound:
            sys.exit(f"{net}: {name} differs by {error:.2g}, more than {bound:.2g}: nothing is compared")
    return {name: f"{error:.1e} (<= {bound:.1e})" for name, (error, bound) in checks.items()}


def product_of(work: str) -> str:
    """The product that a work is made of."""
    return next((name for name in PRODUCTS[1:] if name.split(" product")[0] in work), "HVP")


def agreement(
    net: str, known: dict[str, sdkeras.HessianOperator], peer: Peer, batch: dict[str, np.ndarray]
) -> tuple[dict[str, list[str]], list[str]]:
    """What the peers offer for this net, and a row of the agreement."""
    H = known["HVP"]
    v = np.sign(GENERATOR.standard_normal(H.size)).astype(np.float32)
    products = {name: operator.matvec(v) for name, operator in known.items()}
    point, gradient = H.loss.point, H.gradient().astype(np.float32)
    answer = told(peer, net, weights=point, gradient=gradient, v=v, block=block_of(net), **batch, **products)
    found = answer["agreement"]
    top = sdkeras.get_estimator("eigenpairs", "lanczos")(num_largest=1, num_smallest=0, num_steps=60, tolerance=1e-5)
    pairs, probe = top.estimate(H, seed=0), float(v.astype(float) @ products["HVP"])
    (largest, residual), own = found["largest"], float(pairs.values[0])
    # A Ritz value is within its residual of an eigenvalue, with a float32 basis within eps sqrt(n) of it; z'Hz within
    # |z| times the error of Hz of another's.
    scale, of_basis = np.linalg.norm(v) * np.linalg.norm(products["HVP"]), EPS * np.sqrt(H.size)
    words = check(
        net,
        {
            "gradient": (found["gradient"], TOLERANCE),
            **{name: (found[f"{name}, {PEERS[0]}"], TOLERANCE) for name in products},
            "lambda_1": (abs(largest - own) / own, (residual + pairs.residuals[0]) / own + max(TOLERANCE, of_basis)),
            "trace, one probe": (abs(found["probe"] - probe) / scale, TOLERANCE),
        },
    )
    compared = [(name, each) for name in products for each in PEERS if f"{name}, {each}" in found]
    wrong = {pair: found[", ".join(pair)] for pair in compared if not found[", ".join(pair)] <= TOLERANCE}
    offers = {
        name: [work for work in works if (product_of(work), name) not in wrong]
        for name, works in answer["works"].items()
    }
    left_out = ", ".join(f"{each} ({name}): {error:.1e}" for (name, each), error in wrong.items()) or "-"
    return offers, [net, *(words.get(name, "") for name in CHECKS), left_out]


CHECKS = ("gradient", *PRODUCTS, "lambda_1", "trace, one probe")


def digits(peer: Peer) -> tuple[Works, dict[str, list[str]], str]:
    """The Laplace posterior of a small trained net, dense: works, offers, and the agreement in float64 in words."""
    images, y = load_digits()
    x = images.reshape(len(images), -1)
    (x, test), y = np.split(x[:1500], [1000]), y[:1000]
    keras.utils.set_random_seed(0)
    model = common.mlp(64, 16, 1)
    model.compile(keras.optimizers.Adam(0.01), common.CE)
    model.fit(x, y, batch_size=100, epochs=30, verbose=0)

    def fit(dtype: str = "float32") -> sdkeras.Laplace:
        return sdkeras.laplace(model, (x, y), rank=model.count_params(), prior_precision=PRIOR, dtype=dtype)

    own, single = fit("float64"), fit()
    weights = np.concatenate([np.ravel(each) for each in model.get_weights()])
    given = {"weights": weights, "x": x, "y": y, "test": test, "prior": PRIOR}
    known = {"evidence": own.log_marginal_likelihood, "probabilities": probit(own, test)}
    answer = told(peer, DIGITS, **given, **known)
    found = answer["agreement"]
    # A relative error eps of P moves ln det P by up to d eps cond(P), J P^-1 J' by eps cond(P) of itself.
    rounding = 10 * float(np.finfo(float).eps) * found["condition"]
    words = check(
        DIGITS,
        {
            "log marginal likelihood": (found["evidence"], own.size * rounding / abs(own.log_marginal_likelihood)),
            "probabilities": (found["probabilities"], rounding),
        },
    )
    probit(single, test)
    works = {
        "Laplace, fit and evidence": lambda: fit().log_marginal_likelihood,
        "Laplace, best prior": lambda: single.with_prior().prior_precision,
        "Laplace, first 500 predictions": lambda: probit(single.with_prior(PRIOR), test),  # with the factors of P
        "Laplace, 500 more": lambda: probit(single, test),
    }
    text = "; ".join(f"{name} {word}" for name, word in words.items())
    return works, answer["works"], f"{DIGITS}, Laplace in float64: {text}, condition {found['condition']:.1e}."


def probit(posterior: sdkeras.Laplace, x: np.ndarray) -> np.ndarray:
    return posterior.predictive(x, method="probit").probabilities


def block_of(net: str) -> int:
    return 64 if net == "MLP 13k" else 8


def measured(own: Callable[[], object], peer: Peer, names: list[str], work: str) -> dict[str, tuple[float, object]]:
    """Least seconds and last value, of sdkeras as '' and of each peer."""
    calls, steps = 1, 0
    if work in (*PRODUCTS, "block"):
        for _ in range(5):  # compiled on the first call, short rows together once 256 of them were multiplied
            own()
        calls = max(1, min(100, int(0.1 / common.seconds_of(own))))
    least: dict[str, tuple[float, object]] = {}
    start = time.perf_counter()
    for done in itertools.count(1):
        values: list[object] = []
        seconds = common.seconds_of(lambda values=values: values.append(own()), calls=calls)
        least[""] = (min(seconds, least.get("", (seconds,))[0]), values[-1])
        steps = steps or getattr(values[-1], "num_matvecs", 0)
        for name in names:
            answer = peer.ask(peer=name, work=work, calls=calls, steps=steps)
            seconds = answer["seconds"]
            least[name] = (min(seconds, least.get(name, (seconds,))[0]), answer["value"])
        spent = time.perf_counter() - start
        if done == MOST_ROUNDS or spent * (done + 1) / done > PATIENCE:
            return least


def check_values(work: str, least: dict[str, tuple[float, object]]) -> None:
    """Ends the program where a peer's eigenvalue, trace or evidence is another one."""
    own = least[""][1]
    for name, (_, value) in least.items():
        if name and work == "top 10" and not abs(value / own.values[0] - 1) <= 2e-3:
            sys.exit(f"{name}: largest eigenvalue {value}, here {own.values[0]}")
        # Both traces are random; their standard errors are alike, that of 20 probes known to 16 %.
        if name and work in ("Hutch++ 60", "XTrace 60, GGN") and not abs(value - own.value) <= 6 * 2**0.5 * own.stderr:
            sys.exit(f"{name}: trace {value}, here {own.value} +- {own.stderr}")


def row_of(net: str, work: str, own: Callable[[], object], offers: dict[str, list[str]], peer: Peer) -> list[str]:
    names = [name for name in PEERS if work in offers.get(name, ())]
    least = measured(own, peer, names, work)
    check_values(work, least)
    seconds = least[""][0]
    slower = [name for name in names if seconds > least[name][0]]
    # Errors of a diagonal, evidences and prior precisions.
    numbers = {name: f", {value:.5g}" if isinstance(least[""][1], float) else "" for name, (_, value) in least.items()}
    cells = [f"{least[n][0]:.3g} s{numbers[n]} ({seconds / least[n][0]:.2f})" if n in least else "" for n in PEERS]
    label = f"block of {block_of(net)} HVPs" if work == "block" else work
    return [net, label, f"{seconds:.3g} s{numbers['']}", *cells, "**no**" if slower else "yes", TODAY]


def earlier(before: str, head: tuple[str, ...]) -> dict[tuple[str, ...], list[str]]:
    """Rows of a table of the page, by the cells that name them."""
    lines = (line[2:-2].split(" | ") for line in before.splitlines() if line.startswith("| "))
    named = 2 if head[1] == "work" else 1
    return {tuple(row[:named]): row for row in lines if len(row) == len(head) and row[0] not in ("net", "---")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="of the environment with PyTorch")
    parser.add_argument("--nets", nargs="+", choices=[*NETS, DIGITS], default=[*NETS, DIGITS])
    parser.add_argument("--works", default="", metavar="REGEX")
    options = parser.parse_args()
    common.one_thread()
    peer, head = Peer(options.python), ("net", *CHECKS, "left out: product wrong by")
    part = options.works or len(options.nets) <= len(NETS)
    page = (common.FOLDER / "peers.md").read_text() if part else ""
    rows, agreements = earlier(page, HEADER), earlier(page, head)
    sentence = next((line for line in page.splitlines() if line.startswith(f"{DIGITS}, ")), "")
    machines = dict(re.findall(r"^- (\d{4}-\d\d-\d\d): (.*)$", page, re.MULTILINE))
    machines[TODAY] = f"{common.machine()}; {peer.versions}."
    for net in options.nets:
        if net == DIGITS:
            works, offers, sentence = digits(peer)
            print(sentence, flush=True)
        else:
            H, (x, y) = common.operator(net)
            known = operators(net, H)
            exact = {"diagonal": exact_diagonal(known["GGN product"])} if net == "MLP 13k" else {}
            offers, row = agreement(net, known, peer, {"x": x, "y": y, **exact})
            agreements[(net,)] = row
            print(", ".join(row), flush=True)
            works = own_works(net, known, exact.get("diagonal"))
        for work, own in works.items():
            if re.search(options.works, work):
                row = row_of(net, work, own, offers, peer)
                rows[row[0], row[1]] = row
                print(" | ".join(row), flush=True)
    nets = [*NETS, DIGITS]
    table, checks = (sorted(each.values(), key=lambda row: nets.index(row[0])) for each in (rows, agreements))
    behind, dates = sum("**no**" in row for row in table), sorted({row[-1] for row in table})
    common.write(
        "peers.md",
        "".join(f"- {date}: {machines[date]}\n" for date in dates)
        + f"\nBehind in {behind} of {len(table)} rows.\n\n{common.table(HEADER, table)}\n"
        f"Agreement, relative, and its tolerance:\n\n{common.table(head, checks)}\n{sentence}\n",
    )


if __name__ == "__main__":
    main()
