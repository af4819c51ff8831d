"""Where the numbers of an analysis were earlier in the same training, from its log, for a scale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

from sdkeras.errors import SdkerasError, counted
from sdkeras.results.log import Header, Measurement, RunLog, trajectory
from sdkeras.results.measured import Measured
from sdkeras.results.note import Note

if TYPE_CHECKING:
    from sdkeras.results.answers import Analysis


@attrs.frozen
class Earlier:
    """The first measurement of the training, before the weights of the analysis, from its log.

    None where a number has no counterpart in the analysis beside it, and `reason` says why there is no dimension.
    """

    step: int  # updates of the weights so far
    epoch: int | None  # epochs finished, or None where it is not known
    learning_rate: float | None  # at this step, which ratio, dimension and codimension are of
    sharpness: Measured | None  # algebraically largest eigenvalue of the data-set Hessian H
    ratio: float | None  # over the threshold, where it is that of the same operator
    sharpness_dimension: Measured | None  # in the same map, whose coordinates follow from it
    codimension: Measured | None
    reason: str = ""

    @property
    def when(self) -> str:
        """The time of the measurement, in words."""
        return f"after epoch {self.epoch:,}" if self.epoch else f"at step {self.step:,}"


def check_size(log: RunLog, size: int) -> None:
    """Refuses the log of a model with another number of analysed parameters, which is another model's."""
    header = log.header
    if header.num_parameters != size:
        raise SdkerasError(
            f"the log is of {counted(header.num_parameters, 'parameter')} of the model {header.model!r:.60}, and "
            f"{size:,} are analysed here; give the folder of this model's training (`log=DIR`), or leave it out."
        )


def with_earlier(run: Analysis, log: RunLog) -> Analysis:
    """The analysis with the first measurement of its training; as it is where none is of an earlier step."""
    step = run.optimizer.iterations
    for each in trajectory(log):  # by step
        if not each.failed and (step is None or each.step < step):
            return attrs.evolve(run, earlier=_earlier(run, log.header, each))
    return run


def about_log(run: Analysis, log: RunLog) -> tuple[Note, ...]:
    """What the reader of an analysis must know about the log that was given for it."""
    notes = []
    if run.earlier is None:
        step, which = run.optimizer.iterations, "measurement"
        if step is not None:
            which += f" before step {step:,}, where these weights are"
        notes.append(Note("nothing-earlier", f"the log has no {which}: nothing is compared with earlier in training."))
    if log.header.data_digest != run.provenance.data_digest:
        words = "the log is of other data, or of the same in another order: so may be what differs from earlier."
        notes.append(Note("log-of-other-data", words))
    return tuple(notes)


def _earlier(run: Analysis, header: Header, then: Measurement) -> Earlier:
    reason = _no_dimension(run, header, then)
    return Earlier(
        step=then.step,
        epoch=then.epoch,
        learning_rate=then.learning_rate,
        sharpness=_known(then, "sharpness"),
        ratio=_ratio(run, then),
        sharpness_dimension=None if reason else _known(then, "sharpness_dimension"),
        codimension=None if reason else _known(then, "sharpness_codimension"),
        reason=reason,
    )


def _ratio(run: Analysis, then: Measurement) -> float | None:
    known = _known(then, "sharpness_ratio")
    return None if known is None or then.operator != run.edge_of_stability.operator else known.value


def _no_dimension(run: Analysis, header: Header, then: Measurement) -> str:
    """Why there is none in the map, of the state and of the minibatches of the analysis, or ""."""
    now, size = run.sharpness_dimension, run.data.batch_size
    if now is None:
        return "there is none now"
    if _known(then, "sharpness_codimension") is None:
        return "it was not measured then"
    if then.map != now.map:
        return f"then it was of the map {then.map}, now of {now.map}"
    if then.state_size != now.state_size:
        return f"then the state had {then.state_size:,} dimensions, now {now.state_size:,}"
    if header.batch_size != size:
        return f"then it was of minibatches of {header.batch_size:,}, now of {size:,}"
    return ""


def _known(then: Measurement, key: str) -> Measured | None:
    reading = then.values.get(key)
    return None if reading is None or math.isnan(reading.value) else reading
