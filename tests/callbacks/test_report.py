"""Bounds at each measurement, and the folder that is there however a training ends; the measuring is real."""

import json
import math
import signal

import attrs
import keras
import numpy as np
import pytest

import sdkeras
from reporting.test_page import _Tags
from sdkeras.callbacks import SharpnessDimension, sharpness_dimension
from sdkeras.dimension.next_steps import next_steps
from sdkeras.errors import SdkerasError
from sdkeras.reporting.numbers import estimated
from sdkeras.results.log import read_run_log
from small_nets import X, Y

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
GIVEN = {"delta": 0.1, "zeta": 0.05, "mutual_information": 2.0, "constant": 0.5}
SLOW = pytest.mark.slow
FILES = {"run.json", "report.html", "track.html", "sharpness.jsonl"}


def net() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.5), LOSS)
    return model


def watch(**options: object) -> SharpnessDimension:
    return SharpnessDimension((X, Y), **{"batch_size": 16, "max_overhead": None, "tolerance": 0.5, **options})


def fit(model: keras.Model, *callbacks: keras.callbacks.Callback, **options: object) -> dict[str, list[float]]:
    options = {"epochs": 3, "validation_data": (X[:32], Y[:32]), **options}
    return model.fit(X, Y, batch_size=16, verbose=0, callbacks=callbacks, **options).history


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that hold one word, for tests of when they are written."""
    monkeypatch.setattr(sharpness_dimension, "save_html", lambda shown, path: path.write_text("drawn"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training that ends by itself, with every input of Theorem 4.5."""
    folder, model = tmp_path_factory.mktemp("report"), net()
    callback = watch(bound_inputs=GIVEN, estimate_bound_inputs=True, report=folder)
    return folder, model, callback, fit(model, callback, epochs=2)


def test_the_terms_are_those_of_the_theorem(trained) -> None:
    """Theorem 4.5 written out, at the SD in the same line of the log."""
    folder, _, _, history = trained
    log = read_run_log(folder)
    assert len(log.measurements) == 2
    for epoch, found in enumerate(log.measurements):
        attractor, stable = found.bounds
        inputs = {entry.name: entry for entry in attractor.inputs}
        b, length, n = inputs["loss_bound"].value, inputs["lipschitz"].value, len(X)
        assert [name for name, entry in inputs.items() if entry.estimated] == ["loss_bound", "lipschitz"]
        sd = found.value("sharpness_dimension")
        terms = [
            2 * length * 0.1,
            2 * b * math.sqrt(4 * sd * math.log(10) / n),
            (2 + math.log(20)) / math.sqrt(n),
            0.5 * b**2 / math.sqrt(n),
        ]
        assert [term.value for term in attractor.terms] == pytest.approx(terms, rel=1e-12)
        assert attractor.total == pytest.approx(sum(terms), rel=1e-12)
        assert attractor.verdict.startswith("vacuous")
        assert (stable.total, stable.verdict) == (None, "undetermined")
        assert {each.name for each in attractor.assumptions} >= {"1 <= j* < d", "loss in [0, B]"}
        scale = found.values["bound_scale"]
        assert scale.value == history["bound_scale"][epoch] == pytest.approx(math.sqrt(sd / n))
        ends = found.values["sharpness_dimension"].interval
        assert scale.interval == pytest.approx([math.sqrt(end / n) for end in ends])
        assert history["generalization_bound"][epoch] == attractor.total


def test_the_estimated_inputs_are_the_largest_loss_and_gradient_of_one_example(trained) -> None:
    folder, model, _, _ = trained
    found = read_run_log(folder).measurements[-1]
    inputs = {entry.name: entry.value for entry in found.bounds[0].inputs}
    a, b, c, d = (np.asarray(variable, np.float64) for variable in model.trainable_variables)
    hidden = np.tanh(X @ a + b)
    logits = hidden @ c + d
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert inputs["loss_bound"] == pytest.approx((-np.log(p[np.arange(96), Y])).max(), rel=1e-5)
    slope = p - np.eye(3)[Y]
    inner = (slope @ c.T) * (1 - hidden**2)
    squares = (slope**2).sum(1) * (1 + (hidden**2).sum(1)) + (inner**2).sum(1) * (1 + (X.astype(float) ** 2).sum(1))
    assert inputs["lipschitz"] == pytest.approx(np.sqrt(squares).max(), rel=1e-5)


def test_run_json_is_what_analyze_writes_of_the_same_weights(trained) -> None:
    folder, model, callback, _ = trained
    written, log = sdkeras.Analysis.load(folder / "run.json"), read_run_log(folder)
    log = attrs.evolve(log, header=attrs.evolve(log.header, data_digest="another"))
    run = sdkeras.analyze(
        model, (X, Y), batch_size=16, tolerance=0.5, bound_inputs=GIVEN, estimate_bound_inputs=True, runs=3, log=log
    )
    assert written.optimizer == run.optimizer
    assert written.optimizer.iterations == 12
    assert written.model == run.model
    assert written.earlier == run.earlier is not None
    codes = [{note.code for note in each.warnings} for each in (written, run)]
    assert ["log-of-other-data" in each for each in codes] == [False, True]
    assert written.provenance.data_digest == run.provenance.data_digest
    assert written.hessian.largest.value == pytest.approx(run.hessian.largest.value, rel=2e-3)
    assert written.edge_of_stability.threshold == run.edge_of_stability.threshold
    assert written.edge_of_stability.ratio == pytest.approx(run.edge_of_stability.ratio, rel=2e-3)
    assert written.hessian.smallest is None
    for mine, theirs in zip(written.bounds, run.bounds, strict=True):
        assert mine.inputs == theirs.inputs
        assert {each.name for each in mine.assumptions} == {each.name for each in theirs.assumptions}
    assert written.bounds == callback.measurements[-1].bounds
    assert written.sharpness_dimension.value == callback.measurements[-1].value("sharpness_dimension")
    assert written.warnings[-1].message == "measured when fit ended, at step 12."
    assert {path.name for path in folder.iterdir()} == FILES


def test_the_pages_hold_the_bounds_and_the_gap(trained) -> None:
    folder, *_ = trained
    report, track = ((folder / name).read_text() for name in ("report.html", "track.html"))
    assert "Generalization bound, Theorem 4.5" in report
    assert "Scale of the bounds and gap of the loss" in track
    assert "Theorem 4.5 comes to" in track
    assert "sqrt(SD/n)" in track
    assert not _Tags(report).open
    assert not _Tags(track).open


def test_the_report_says_where_the_numbers_were_after_the_first_epoch(trained) -> None:
    folder, _, callback, _ = trained
    run, page = sdkeras.Analysis.load(folder / "run.json"), (folder / "report.html").read_text()
    first, now = callback.measurements
    then = run.earlier
    assert (then.step, then.epoch, then.reason) == (6, 1, "")
    assert then.codimension == first.values["sharpness_codimension"] != now.values["sharpness_codimension"]
    assert then.sharpness == first.values["sharpness"]
    assert then.ratio == first.value("sharpness_ratio")
    assert "The same net after epoch 1" in page
    assert f"{estimated(then.codimension.value, then.codimension.interval)} after epoch 1, now " in str(run)
    assert run.next_steps == next_steps(run) != ()
    assert "What to do next" in page


class End(keras.callbacks.Callback):
    """Ends a training in the middle of epoch 3, or asks it to end after it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.epoch = how, 0

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if (self.epoch, batch) != (2, 3):
            return
        if self.how == "exception":
            raise RuntimeError("power cut")
        if self.how == "Ctrl-C":
            signal.raise_signal(signal.SIGINT)
        if self.how == "stopped":
            self.model.stop_training = True


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises, also where the tests run in the background and the shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "how", ["done", "Ctrl-C", *(pytest.param(how, marks=SLOW) for how in ("stopped", "exception"))]
)
def test_the_folder_is_there_however_fit_ends(how: str, tmp_path, undrawn, ctrl_c) -> None:
    """Only the first epoch is measured in time; a training that ends by itself is measured at its last weights."""
    model = net()
    callback = watch(max_overhead=1e-9, measures=("sharpness_dimension",), report=tmp_path)
    raised = {"exception": RuntimeError, "Ctrl-C": KeyboardInterrupt}.get(how)
    if raised is None:
        fit(model, callback, End(how), epochs=4)
    else:
        with pytest.raises(raised):
            fit(model, callback, End(how), epochs=4)
    # Keras tells no callback of an exception: the log stays locked as long as the callback, which may report later.
    held = set() if raised is None else {".sharpness.jsonl.lock"}
    assert {path.name for path in tmp_path.iterdir()} == FILES | held
    run, last = sdkeras.Analysis.load(tmp_path / "run.json"), run_steps(model)
    assert last == {"done": 24, "stopped": 16, "exception": 16, "Ctrl-C": 16}[how]
    about = run.warnings[-1].message
    if raised is None:
        assert run.optimizer.iterations == last
        assert about == f"measured when fit ended, at step {last}."
    else:
        assert run.optimizer.iterations == 6
        assert about.startswith("measured while the model trained, at step 6, after 1 epochs")
        callback.save_report()
        run = sdkeras.Analysis.load(tmp_path / "run.json")
        assert run.optimizer.iterations == 16
    assert [found.step for found in read_run_log(tmp_path).measurements] == [6, last]
    assert len(run.bounds) == 2


def run_steps(model: keras.Model) -> int:
    return int(model.optimizer.iterations.numpy())


@pytest.mark.slow
def test_weights_that_early_stopping_brings_back_are_measured_where_it_comes_before(tmp_path, undrawn) -> None:
    model = net()
    stopping = keras.callbacks.EarlyStopping("loss", mode="max", patience=2, restore_best_weights=True)
    callback = watch(measures=("sharpness",), report=tmp_path)
    fit(model, stopping, callback, epochs=9)
    largest = sdkeras.Analysis.load(tmp_path / "run.json").hessian.largest.value
    operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (X, Y), 16))
    expected = np.linalg.eigvalsh(operator.matmat(np.eye(operator.size, dtype="float32")))[-1]
    assert largest == pytest.approx(expected, rel=2e-3)
    assert callback.measurements[-1].value("sharpness") != pytest.approx(expected, rel=1e-2)
    log = read_run_log(tmp_path)
    assert [found.step for found in log.measurements] == [6, 12, 18]  # the restored weights are not on this way
    assert all(not found.bounds for found in log.measurements)


def test_a_measurement_that_fails_leaves_the_report_of_the_one_before(tmp_path, undrawn, caplog) -> None:
    class Break(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            self.model.layers[-1].bias.assign([math.nan] * 3)

    fit(net(), watch(measures=("sharpness",), report=tmp_path), Break(), epochs=2)
    assert sdkeras.Analysis.load(tmp_path / "run.json").optimizer.iterations == 6
    assert "its numbers are NaN" in caplog.text


def test_a_report_that_cannot_be_written_is_told_once_and_training_goes_on(tmp_path, caplog) -> None:
    callback = watch(measures=("sharpness",), report=tmp_path / "run", log_dir=tmp_path / "log")
    (tmp_path / "run").rmdir()
    assert len(fit(net(), callback)["sharpness"]) == 3
    assert len([record for record in caplog.records if "the report in" in record.getMessage()]) == 1


@pytest.mark.slow
def test_a_schedule_at_its_end_has_a_report_without_a_step(tmp_path, undrawn) -> None:
    model = net()
    model.compile(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.5, 18)), LOSS)
    fit(model, watch(measures=("sharpness", "sharpness_dimension"), report=tmp_path))
    run = sdkeras.Analysis.load(tmp_path / "run.json")
    assert run.sharpness_dimension is None
    assert run.bounds == ()
    assert run.hessian.largest.value > 0
    assert run.edge_of_stability.ratio is None
    assert (
        json.loads((tmp_path / "sharpness.jsonl").read_text().splitlines()[-1])["values"]["bound_scale"]["value"]
        is None
    )


def test_a_report_needs_a_folder_and_a_training() -> None:
    with pytest.raises(SdkerasError, match=r"give one \(report=DIR\)"):
        watch().save_report()


def test_class_weights_reach_the_measurements(tmp_path) -> None:
    """The largest eigenvalue of the Hessian with the weights of fit as sample weights."""
    weights, model = {0: 1.0, 1: 9.0}, net()
    callback = watch(measures=("sharpness",), class_weight=weights, report=tmp_path)
    fit(model, callback, class_weight=weights, epochs=1)
    each = np.where(Y == 1, 9.0, 1.0)
    operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (X, Y, each), 16))
    expected = np.linalg.eigvalsh(operator.matmat(np.eye(operator.size, dtype="float32")))[-1]
    assert callback.measurements[-1].value("sharpness") == pytest.approx(expected, rel=2e-3)
    assert read_run_log(tmp_path).header.class_weight == {"0": 1.0, "1": 9.0}
    assert sdkeras.Analysis.load(tmp_path / "run.json").data.class_weight == {"0": 1.0, "1": 9.0}
    assert "their difference is no gap" in (tmp_path / "track.html").read_text()
