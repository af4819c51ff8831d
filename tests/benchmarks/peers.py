"""sdkeras beside its peers on PyTorch, on the same weights and batch: `make bench-peers`.

Two processes of one thread each measure in turn, in process CPU time; the least of several rounds counts. First the
gradient, products, the largest eigenvalue and a probe of the trace must agree with PyTorch's double backward; a library
whose products do not is left out.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
from common import GENERATOR, NETS

import sdkeras

PEERS = ("torch, retained graph", "PyHessian", "hessian-eigenthings", "curvlinops")
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


def own_works(H: sdkeras.HessianOperator, block: int) -> dict[str, Callable[[], object]]:
    v, rows = np.ones(H.size, np.float32), GENERATOR.standard_normal((block, H.size)).astype(np.float32)
    spectrum, trace = sdkeras.get_estimator("spectrum", "slq"), sdkeras.get_estimator("trace", "randomized-trace")
    top = sdkeras.get_estimator("eigenpairs", "lanczos")(num_largest=10, num_smallest=0, num_steps=1000, tolerance=1e-3)
    return {
        "HVP": lambda: H.matvec(v),
        "block": lambda: H.rows(rows),
        "SLQ 40": lambda: spectrum(num_steps=40).estimate(H, seed=0),
        "SLQ 100": lambda: spectrum(num_steps=100).estimate(H, seed=0),
        "top 10": lambda: top.estimate(H, seed=0),
        "Hutch++ 60": lambda: trace(num_probes=60, method="hutch++").estimate(H, seed=0),
    }


def agreement(net: str, H: sdkeras.HessianOperator, peer: Peer, x: np.ndarray, y: np.ndarray) -> tuple[dict, list[str]]:
    """What the peers offer for this net, and a row of the agreement; ends the program where PyTorch disagrees."""
    v = np.sign(GENERATOR.standard_normal(H.size)).astype(np.float32)
    product, given = H.matvec(v), {"x": x, "y": y, "v": v, "block": block_of(net)}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "net.npz")
        np.savez(path, weights=H.loss.point, product=product, gradient=H.gradient().astype(np.float32), **given)
        answer = peer.ask(net=net, path=path)
    found = answer["agreement"]
    top = sdkeras.get_estimator("eigenpairs", "lanczos")(num_largest=1, num_smallest=0, num_steps=60, tolerance=1e-5)
    pairs, probe = top.estimate(H, seed=0), float(v.astype(float) @ product)
    (largest, residual), own = found["largest"], float(pairs.values[0])
    # A Ritz value is within its residual of an eigenvalue, with a float32 basis within eps sqrt(n) of it; z'Hz within
    # |z| times the error of Hz of another's.
    scale, of_basis = np.linalg.norm(v) * np.linalg.norm(product), EPS * np.sqrt(H.size)
    checks = {
        "gradient": (found["gradient"], TOLERANCE),
        "HVP": (found[f"HVP, {PEERS[0]}"], TOLERANCE),
        "lambda_1": (abs(largest - own) / own, (residual + pairs.residuals[0]) / own + max(TOLERANCE, of_basis)),
        "trace, one probe": (abs(found["probe"] - probe) / scale, TOLERANCE),
    }
    for name, (error, bound) in checks.items():
        if not error <= bound:
            sys.exit(f"{net}: {name} differs by {error:.2g}, more than {bound:.2g}: nothing is compared")
    wrong = {name: found[f"HVP, {name}"] for name in PEERS if not found[f"HVP, {name}"] <= TOLERANCE}
    works = {name: work for name, work in answer["works"].items() if name not in wrong}
    left_out = ", ".join(f"{name}: {error:.1e}" for name, error in wrong.items()) or "-"
    return works, [net, *(f"{error:.1e} (<= {bound:.1e})" for error, bound in checks.values()), left_out]


def block_of(net: str) -> int:
    return 64 if net == "MLP 13k" else 8


def measured(own: Callable[[], object], peer: Peer, names: list[str], work: str) -> dict[str, tuple[float, object]]:
    """Least seconds and last value, of sdkeras as '' and of each peer."""
    calls, steps = 1, 0
    if work in ("HVP", "block"):
        own()  # compiled on the first call
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
    """Ends the program where a peer's eigenvalue or trace is another one."""
    own = least[""][1]
    for name, (_, value) in least.items():
        if name and work == "top 10" and not abs(value / own.values[0] - 1) <= 2e-3:
            sys.exit(f"{name}: largest eigenvalue {value}, here {own.values[0]}")
        # Both traces are random; their standard errors are alike, that of 20 probes known to 16 %.
        if name and work == "Hutch++ 60" and not abs(value - own.value) <= 6 * 2**0.5 * own.stderr:
            sys.exit(f"{name}: trace {value}, here {own.value} +- {own.stderr}")


def main(python: str) -> None:
    common.one_thread()
    peer, rows, agreements, behind = Peer(python), [], [], 0
    for net in NETS:
        H, (x, y) = common.operator(net)
        offers, row = agreement(net, H, peer, x, y)
        agreements.append(row)
        print(", ".join(row), flush=True)
        for work, own in own_works(H, block_of(net)).items():
            names = [name for name in PEERS if work in offers.get(name, ())]
            least = measured(own, peer, names, work)
            check_values(work, least)
            seconds = least[""][0]
            slower = [name for name in names if seconds > least[name][0]]
            cells = [f"{least[n][0]:.3g} s ({seconds / least[n][0]:.2f})" if n in least else "" for n in PEERS]
            label = f"block of {block_of(net)} HVPs" if work == "block" else work
            rows.append([net, label, f"{seconds:.3g} s", *cells, "**no**" if slower else "yes"])
            behind += bool(slower)
            print(" | ".join(rows[-1]), flush=True)
    header = ["net", "work", "sdkeras", *PEERS, "ahead of all"]
    common.write(
        "peers.md",
        f"{common.machine()}; {peer.versions}. Behind in {behind} of {len(rows)} rows.\n\n"
        f"{common.table(header, rows)}\nAgreement, relative, and its tolerance:\n\n"
        + common.table(
            ["net", "gradient", "HVP", "lambda_1", "trace, one probe", "left out: HVP wrong by"], agreements
        ),
    )


if __name__ == "__main__":
    main(sys.argv[1])
