"""The PyTorch side of `peers.py`, in an environment without TensorFlow: answers one JSON line per request.

The nets are written as a PyTorch user would; weights, batch and vectors come from Keras and are laid out anew.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version

import numpy as np
import torch
from curvlinops import (
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    hutchpp_trace,
    lanczos_approximate_spectrum,
    xdiag,
    xtrace,
)
from hessian_eigenthings import (
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    lanczos,
    spectral_density,
    supervised_forward,
    supervised_loss,
    supervised_loss_of_output,
    supervised_per_sample_loss,
    trace,
)
from laplace import Laplace
from pyhessian import hessian
from pyhessian.utils import hessian_vector_product
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CE = nn.CrossEntropyLoss()


def eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
    """`torch.eig` of a symmetric matrix, which PyHessian calls and PyTorch no longer has."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


torch.eig = eig


class Block(nn.Module):
    """Attention and feed-forward, each behind its layer normalization."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first = nn.LayerNorm(width, eps=1e-3)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.second = nn.LayerNorm(width, eps=1e-3)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor) -> Tensor:
        a = self.first(h)
        q, k, v = (f(a).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mask = torch.full(2 * (h.shape[1],), float("-inf")).triu(1)
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask, -1)
        h = h + self.out((weights @ v).transpose(1, 2).flatten(2))
        return h + self.feed(self.second(h))


class Transposed(nn.Module):
    """[batch, length, classes] to [batch, classes, length], as the loss takes them."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.transpose(1, 2)


def net(name: str) -> nn.Module:
    if name.startswith("digits"):
        return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    if name.startswith("MLP"):
        width = {"MLP 13k": 16, "MLP 270k": 256}[name]
        hidden = [nn.Linear(784, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
        return nn.Sequential(*hidden, nn.Linear(width, 10))
    if name.startswith("CNN"):
        last = nn.Linear(32 * 11 * 11, 10)
        last.channels = 32
        convs = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU()]
        return nn.Sequential(*convs, nn.Flatten(), last)
    blocks = [Block(128, 4) for _ in range(3)]
    return nn.Sequential(nn.Embedding(80, 128), *blocks, nn.LayerNorm(128, eps=1e-3), nn.Linear(128, 80), Transposed())


def from_keras(model: nn.Module, flat: np.ndarray) -> Iterator[Tensor]:
    """The pieces of a flat vector in Keras' order and layout, in the model's."""
    start = 0
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            piece = flat[start : start + parameter.numel()]
            start += parameter.numel()
            if parameter.ndim == 4:
                out, channels, *sides = parameter.shape
                piece = piece.reshape(*sides, channels, out).transpose(3, 2, 0, 1)
            elif isinstance(module, nn.Linear) and parameter.ndim == 2:  # Keras flattens channels last
                piece = piece.reshape(-1, getattr(module, "channels", 1), len(parameter)).transpose(2, 1, 0)
            yield torch.tensor(piece.reshape(parameter.shape))


def filled(name: str, weights: np.ndarray) -> nn.Module:
    model = net(name)
    with torch.no_grad():
        for parameter, piece in zip(model.parameters(), from_keras(model, weights), strict=True):
            parameter.copy_(piece)
    return model


class Peers:
    """What each peer offers for one net, by kind of work; a result where it can be compared."""

    def __init__(self, name: str, path: str) -> None:
        given = np.load(path)
        self.model = model = filled(name, given["weights"])
        x, y = torch.tensor(given["x"]), torch.tensor(given["y"]).long()
        x = x.movedim(-1, 1).contiguous() if x.ndim == 4 else x
        known = [key for key in ("HVP", "GGN product", "empirical Fisher product") if key in given]
        vectors = {
            key: self.flat(from_keras(model, given[key]))
            for key in ("v", "gradient", "diagonal", *known)
            if key in given
        }
        v = vectors["v"]
        self.parameters = list(model.parameters())
        block = torch.randn(len(v), int(given["block"]))
        pyhessian = hessian(model, CE, data=(x, y), cuda=False)
        model.zero_grad()
        self.gradients = torch.autograd.grad(CE(model(x), y), self.parameters, create_graph=True)
        eigenthings = HessianOperator(model, [(x, y)], supervised_loss(CE))
        curvlinops = HessianLinearOperator(model, CE, self.parameters, [(x, y)], check_deterministic=False)
        scipy_operator = curvlinops.to_scipy()
        self.make_linear(x, y)
        forward, of_output = supervised_forward, supervised_loss_of_output(CE)
        eigenthings_ggn = GGNOperator(model, [(x, y)], forward, of_output)
        eigenthings_fisher = EmpiricalFisherOperator(model, [(x, y)], supervised_per_sample_loss(CE))
        ggn, fisher = (
            operator(model, CE, self.parameters, [(x, y)], check_deterministic=False)
            for operator in (GGNLinearOperator, EFLinearOperator)
        )
        pieces = self.split(v)

        def pyhessian_product() -> Tensor:
            return self.flat(hessian_vector_product(pyhessian.gradsH, pyhessian.params, pieces))

        def eigenthings_top() -> float:
            top = lanczos(eigenthings, k=10, max_iter=self.steps, tol=1e-3, which="LA", reorthogonalize=True, seed=0)
            return float(top.eigenvalues[0])

        self.works: dict[str, dict[str, Callable[[], object]]] = {
            "torch, retained graph": {
                "HVP": lambda: self.product(v),
                "block": self.quicker_block(block),
                "GGN product": lambda: self.ggn_product(v),
                "empirical Fisher product": lambda: self.fisher_product(v),
            },
            "PyHessian": {
                "HVP": pyhessian_product,
                "SLQ 40": lambda: pyhessian.density(iter=40, n_v=1),
                "SLQ 100": lambda: pyhessian.density(iter=100, n_v=1),
            },
            "hessian-eigenthings": {
                "HVP": lambda: eigenthings.matvec(v),
                "block": lambda: [eigenthings.matvec(column) for column in block.T],
                "SLQ 40": lambda: spectral_density(eigenthings, num_runs=1, lanczos_steps=40),
                "SLQ 100": lambda: spectral_density(eigenthings, num_runs=1, lanczos_steps=100),
                "top 10": eigenthings_top,
                "Hutch++ 60": lambda: trace(eigenthings, num_matvecs=60, method="hutch++", seed=0).estimate,
                "GGN product": lambda: eigenthings_ggn.matvec(v),
                "empirical Fisher product": lambda: eigenthings_fisher.matvec(v),
            },
            "curvlinops": {
                "HVP": lambda: curvlinops @ v,
                "block": lambda: curvlinops @ block,
                "SLQ 40": lambda: lanczos_approximate_spectrum(curvlinops, 40, boundaries=(-1.0, 1.0)),
                "SLQ 100": lambda: lanczos_approximate_spectrum(curvlinops, 100, boundaries=(-1.0, 1.0)),
                "top 10": lambda: float(
                    eigsh(scipy_operator, k=10, which="LA", tol=1e-3, return_eigenvectors=False).max()
                ),
                "Hutch++ 60": lambda: float(hutchpp_trace(curvlinops, 60)),
                "GGN product": lambda: ggn @ v,
                "empirical Fisher product": lambda: fisher @ v,
                "XTrace 60, GGN": lambda: float(xtrace(ggn, 60)),
                "XDiag 60, GGN": lambda: relative(xdiag(ggn, 60), vectors["diagonal"]),
            },
        }
        products = {f"{key}, {peer}": work[key]() for key in known for peer, work in self.works.items() if key in work}
        top = lanczos(eigenthings, k=1, max_iter=60, which="LA", reorthogonalize=True, seed=1)
        self.agreement = {
            "gradient": relative(self.flat(self.gradients).detach(), vectors["gradient"]),
            **{pair: relative(found, vectors[pair.split(", ")[0]]) for pair, found in products.items()},
            "probe": float(v.double() @ products["HVP, torch, retained graph"].double()),
            "largest": [float(top.eigenvalues[0]), float(top.residuals[0])],
        }
        self.steps = 0  # of the Lanczos run for ten eigenvalues, which hessian-eigenthings must be told

    def flat(self, pieces: Iterator[Tensor] | tuple[Tensor, ...]) -> Tensor:
        return torch.cat([piece.reshape(-1) for piece in pieces])

    def split(self, v: Tensor) -> list[Tensor]:
        parts = v.split([parameter.numel() for parameter in self.parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, self.parameters, strict=True)]

    def product(self, v: Tensor) -> Tensor:
        """Double backward of a gradient whose graph is kept."""
        return self.flat(torch.autograd.grad(self.gradients, self.parameters, self.split(v), retain_graph=True))

    def make_linear(self, x: Tensor, y: Tensor) -> None:
        """Keeps the graphs of the outputs f and of J'u, whose derivative in u is J."""
        self.outputs = self.model(x)
        self.probabilities = torch.softmax(self.outputs, 1).detach()
        targets = nn.functional.one_hot(y, self.outputs.shape[1]).movedim(-1, 1)
        self.slopes, self.count = self.probabilities - targets, y.numel()
        self.dual = torch.zeros_like(self.outputs, requires_grad=True)
        self.pulled = torch.autograd.grad(self.outputs, self.parameters, self.dual, create_graph=True)

    def pushed(self, v: Tensor) -> Tensor:
        return torch.autograd.grad(self.pulled, self.dual, self.split(v), retain_graph=True)[0]

    def pull(self, u: Tensor) -> Tensor:
        return self.flat(torch.autograd.grad(self.outputs, self.parameters, u / self.count, retain_graph=True))

    def ggn_product(self, v: Tensor) -> Tensor:
        """J'(diag p - pp')Jv."""
        weighted = self.probabilities * self.pushed(v)
        return self.pull(weighted - self.probabilities * weighted.sum(1, keepdim=True))

    def fisher_product(self, v: Tensor) -> Tensor:
        """J'ss'Jv, s the slope of each example's loss in its outputs."""
        return self.pull(self.slopes * (self.slopes * self.pushed(v)).sum(1, keepdim=True))

    def quicker_block(self, block: Tensor) -> Callable[[], object]:
        """Products with several vectors: batched by PyTorch or one by one, whichever is quicker."""
        columns = list(block.T.contiguous())
        rows = [torch.stack(parts) for parts in zip(*(self.split(column) for column in columns), strict=True)]

        def batched() -> object:
            return torch.autograd.grad(self.gradients, self.parameters, rows, retain_graph=True, is_grads_batched=True)

        def one_by_one() -> object:
            return [self.product(column) for column in columns]

        try:
            return min((one_by_one, batched), key=lambda block: (seconds_of(block), seconds_of(block))[1])
        except RuntimeError:  # no batched form of the derivative of max-pooling
            return one_by_one


class Posterior:
    """Laplace's posterior of all weights, dense: what is timed in float32, and the agreement in float64."""

    def __init__(self, name: str, path: str) -> None:
        self.given, self.name = np.load(path), name
        torch.set_default_dtype(torch.float64)
        exact = self.fit()
        precision, evidence = exact.posterior_precision, float(self.given["evidence"])
        found = exact(self.tensor("test"), link_approx="probit")
        self.agreement = {
            "evidence": abs(float(exact.log_marginal_likelihood()) / evidence - 1),
            "probabilities": relative(found, torch.tensor(self.given["probabilities"])),
            "condition": float(torch.linalg.cond(precision)),
        }
        torch.set_default_dtype(torch.float32)
        single, tuned, test = self.fit(), self.fit(), self.tensor("test")

        def best() -> float:
            tuned.optimize_prior_precision(method="marglik")
            return float(tuned.prior_precision)

        def first() -> Tensor:
            tuned.prior_precision = float(self.given["prior"])  # forgets the factors of P
            return tuned(test, link_approx="probit")

        single(test, link_approx="probit")
        self.works: dict[str, dict[str, Callable[[], object]]] = {
            "laplace-torch": {
                "Laplace, fit and evidence": lambda: float(self.fit().log_marginal_likelihood()),
                "Laplace, best prior": best,
                "Laplace, first 500 predictions": first,
                "Laplace, 500 more": lambda: single(test, link_approx="probit"),
            }
        }
        self.steps = 0

    def tensor(self, key: str) -> Tensor:
        return torch.tensor(self.given[key], dtype=torch.get_default_dtype())

    def fit(self) -> Laplace:
        model = filled(self.name, self.given["weights"]).to(torch.get_default_dtype())
        data = TensorDataset(self.tensor("x"), torch.tensor(self.given["y"]))
        options = {"subset_of_weights": "all", "hessian_structure": "full"}
        posterior = Laplace(model, "classification", prior_precision=float(self.given["prior"]), **options)
        posterior.fit(DataLoader(data, batch_size=256))
        return posterior


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def seconds_of(function: Callable[[], object], calls: int = 1) -> float:
    start = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - start) / calls


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    peers = None
    for line in sys.stdin:
        asked = json.loads(line)
        if "net" in asked:
            del peers
            kind = Posterior if asked["net"].startswith("digits") else Peers
            peers = kind(asked["net"], asked["path"])
            answer = {"agreement": peers.agreement, "works": {name: list(work) for name, work in peers.works.items()}}
        else:
            peers.steps = asked["steps"]
            work, values = peers.works[asked["peer"]][asked["work"]], []
            seconds = seconds_of(lambda work=work, values=values: values.append(work()), asked["calls"])
            answer = {"seconds": seconds, "value": values[-1] if isinstance(values[-1], float) else None}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    names = ("torch", "pyhessian", "hessian-eigenthings", "curvlinops-for-pytorch", "laplace-torch")
    print(json.dumps({"versions": ", ".join(f"{name} {version(name)}" for name in names)}), flush=True)
    main()
