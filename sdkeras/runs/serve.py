"""An analysis on several hosts: the chief takes all decisions, and the others make products and runs for it.

Every host reads the model and the data and verifies its products. The chief's messages are small: a product of the data
set, whose vector follows and to which each host adds its batches' share; runs of an estimator, of which each host makes
its share by their numbers; the end. A run's number decides its minibatch and probe, whoever makes it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs
import numpy as np
import tensorflow as tf

from sdkeras.dimension.sampling import Runner
from sdkeras.errors import BudgetError, SdkerasError, counted
from sdkeras.files.keras_types import Tensor
from sdkeras.files.user_code import last_line
from sdkeras.linalg.operators import RowsOperator, SymmetricOperator
from sdkeras.linalg.vectors import finite
from sdkeras.operators.hessian import CurvatureOperator, HessianOperator
from sdkeras.results.answers import Analysis
from sdkeras.results.arrays import Value
from sdkeras.results.codec import as_plain, from_plain
from sdkeras.results.estimates import Spectrum
from sdkeras.runs import measure
from sdkeras.runs.budget import Budget, Resources
from sdkeras.runs.cluster import Cluster
from sdkeras.runs.problem import Problem

_BEGIN, _PRODUCT, _RUNS, _END = "begin", "product", "runs", "end"


class _Share:
    """Products with a host's share of the batches, summed over all hosts."""

    def __init__(self, cluster: Cluster, hessian: HessianOperator) -> None:
        self.cluster, self.hessian = cluster, hessian.part(cluster.rank, cluster.count)

    def products(self, rows: Tensor) -> Tensor:
        """H r for each row r; where the chief's own share fails, the others are not left waiting for it."""
        zeros = tf.zeros_like(rows)
        try:
            share = zeros if self.hessian is None else self.hessian.rows(rows)
        except Exception:
            if self.cluster.is_chief:
                self.cluster.total(zeros)
            raise
        return self.cluster.total(share)


@attrs.define(eq=False)
class Chief:
    """The chief's side: what the other hosts do for it, and how many products they have made."""

    cluster: Cluster
    hessian: HessianOperator
    products: int = 0
    share: _Share = attrs.field(default=attrs.Factory(lambda self: _Share(self.cluster, self.hessian), takes_self=True))

    @classmethod
    def of(cls, cluster: Cluster, hessian: HessianOperator, room: Resources) -> Chief:
        """The chief, once it has verified its products: runs of all hosts are held to its memory and threads."""
        cluster.told({"op": _BEGIN, "memory": room.memory, "workers": room.workers})
        return cls(cluster, hessian)

    def over_batches(self, hessian: CurvatureOperator) -> SymmetricOperator:
        """The data-set Hessian by all hosts; any other operator as it is."""
        known = hessian.batches is self.hessian.batches and hessian.engine is self.hessian.engine
        return _SharedHessian(self, hessian) if known else hessian

    def runs_at_once(self, runs: object) -> int:
        """How many hosts make such runs: all where they are of minibatches at the checkpoint, or the chief alone."""
        shared = isinstance(runs, measure.HessianRuns) and runs.hessian is self.hessian and runs.scaling is None
        return self.cluster.count if shared else 1

    def over_runs(self, name: str, runs: object, runner: Runner, budget: Budget) -> Runner:
        """The runs by all hosts, in order; those before the first one that a limit has left out, where it has."""
        if self.runs_at_once(runs) == 1 or not isinstance(runs, measure.HessianRuns):
            return runner
        block, count = runs.block, self.cluster.count

        def spread(indices: Sequence[int], steps: int | None) -> Iterator[Spectrum]:
            if len(indices) == 1:
                yield from runner(indices, steps)
                return
            seconds = None if budget.deadline is None else budget.deadline - time.monotonic()
            place = None if block is None else [block.start, block.stop]
            numbers = [int(index) for index in indices]
            self.cluster.told(
                {"op": _RUNS, "name": name, "block": place, "indices": numbers, "steps": steps, "seconds": seconds}
            )
            own: list[Spectrum] = []
            try:
                reason = _until_a_limit(runner(indices[::count], steps), own)
            except Exception:
                self.cluster.gathered(None)  # so that the others hear of it
                raise
            answers = self.cluster.gathered(None)[1:]
            made = [own, *(from_plain(answer["runs"], tuple[Spectrum, ...], "a host's answer") for answer in answers)]
            self.products += sum(int(answer["products"]) for answer in answers)
            for place_in_group in range(len(indices)):
                of_host = made[place_in_group % count]
                if place_in_group // count >= len(of_host):
                    raise BudgetError(reason or next(answer["reason"] for answer in answers if answer["reason"]))
                yield of_host[place_in_group // count]

        return spread

    def end(self, answer: Analysis) -> None:
        """Gives the others the answer."""
        self.cluster.told({"op": _END, "answer": answer.to_json(), "error": ""})


@contextlib.contextmanager
def telling_failures(cluster: Cluster) -> Iterator[None]:
    """The chief's scope, whose errors the others hear of, unless a host is lost."""
    try:
        yield
    except Exception as error:
        if not cluster.lost:
            cluster.told({"op": _END, "answer": "", "error": last_line(error)})
        raise


class _SharedHessian(RowsOperator):
    """The data-set Hessian, each host with its batches."""

    def __init__(self, chief: Chief, hessian: CurvatureOperator) -> None:
        self.chief, self.hessian = chief, hessian
        self.size, self.dtype, self.space = hessian.size, hessian.dtype, hessian.space

    def rows(self, rows: Tensor) -> Tensor:
        """H r for each row r, shape [k, n] -> [k, n]."""
        chief, number, hessian = self.chief, int(np.shape(rows)[0]), self.hessian
        hessian.require(len(hessian.batches) * number)
        before = hessian.num_products
        chief.cluster.told({"op": _PRODUCT, "rows": number})
        products = chief.share.products(chief.cluster.total(tf.cast(rows, self.dtype)))
        chief.products += number * len(hessian.batches) - (hessian.num_products - before)
        return tf.identity(products) if tf.is_tensor(rows) else finite(products.numpy(), "a Hessian-vector product")


def _until_a_limit(spectra: Iterable[Spectrum], made: list[Spectrum]) -> str:
    """Adds the runs to those made, and says which limit has ended them, or ""."""
    try:
        made.extend(spectra)
    except BudgetError as error:
        return error.reason
    return ""


def serve(cluster: Cluster, problem: Problem, hessian: HessianOperator, budget: Budget) -> Analysis:
    """Works for the chief until it has ended, and returns its answer.

    Raises:
        SdkerasError: The chief has failed, or a host is lost.
    """
    share, begun = _Share(cluster, hessian), hessian.num_products
    budget = attrs.evolve(budget, most=None)
    products = runs = 0
    while True:
        message = cluster.told()
        if message["op"] == _BEGIN:
            room = attrs.evolve(budget.resources, memory=message["memory"], workers=message["workers"])
            budget = attrs.evolve(budget, resources=room)
        elif message["op"] == _PRODUCT:
            share.products(cluster.total(tf.zeros([message["rows"], hessian.size], hessian.dtype)))
            products += message["rows"]
        elif message["op"] == _RUNS:
            answer = _runs(cluster, problem, hessian, budget, message)
            cluster.gathered(answer)
            runs += len(answer["runs"])
        elif message["error"]:
            raise SdkerasError(f"{cluster.hosts[0]} has failed: {message['error']}")
        else:
            cluster.work = (
                f"{counted(hessian.num_products - begun, 'Hessian-vector product')}, in {counted(runs, 'run')} and its "
                f"share of {counted(products, 'product')} with the data set"
            )
            return Analysis.from_json(message["answer"])


def _runs(
    cluster: Cluster, problem: Problem, hessian: HessianOperator, budget: Budget, message: Mapping[str, Value]
) -> dict[str, Value]:
    """This host's share of the runs that the message asks for, with their products and the limit that ended them."""
    how = measure.sampling(problem, message["name"])
    block = None if message["block"] is None else slice(*message["block"])
    deadline = None if message["seconds"] is None else time.monotonic() + message["seconds"]
    within, before = attrs.evolve(budget, deadline=deadline), hessian.num_products
    indices, made, reason = message["indices"][cluster.rank :: cluster.count], list[Spectrum](), ""
    if indices:
        with how.on(measure.HessianRuns(problem, hessian, block), budget.resources, within, within) as runner:
            reason = _until_a_limit(runner(indices, message["steps"]), made)
    return {"runs": as_plain(tuple(made)), "products": hessian.num_products - before, "reason": reason}
