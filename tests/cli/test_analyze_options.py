"""Options of `sdkeras analyze`, and of the commands like it, from the file to the page: maps, rates, losses, data."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.datasets import load_digits
from sdkeras.files.user_code import load_custom_objects
from small_nets import X, Y, net

layers = keras.layers
TARGET = X @ np.arange(1.0, 6.0, dtype="float32")


TASK = """
import keras

@keras.saving.register_keras_serializable(package="cli_loss")
class Task(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.last = keras.layers.Dense(1, use_bias=False)
        self.compile()

    def compile(self, optimizer="auto", loss="auto", **options):
        optimizer = keras.optimizers.Adam(5e-5) if optimizer == "auto" else optimizer
        super().compile(optimizer=optimizer, loss="mse" if loss == "auto" else loss, **options)

    def build(self, shape):
        self.last.build(shape)
        self.built = True

    def call(self, inputs):
        return self.last(inputs)

def fourth(model, batch):
    x, y = batch
    error = keras.ops.abs(model(x, training=True) - y)
    return keras.ops.sum(error**4), keras.ops.shape(x)[0]
"""
PAIRS = """
import numpy as np
held = np.load("train.npz")
x, y = held["x"], held["y"]
def blobs(): return (x[:-8], y[:-8]), (x[-8:], y[-8:])
def halves(): return (x[:8], y[:8]), (x[-8:], y[-8:])
"""


def saved_classifier(path: Path, optimizer: object, width: int, x: np.ndarray, y: np.ndarray, **fit: int) -> None:
    """A net of one hidden layer for digits; trained if there are `epochs`."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input(x.shape[1:]), layers.Flatten(), layers.Dense(width, "tanh"), layers.Dense(10)]
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if fit:
        model.fit(x, y, verbose=0, **fit)
    model.save(path)


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """The command for a net of AdamW on digits, three snapshots."""
    folder = tmp_path_factory.mktemp("snapshots")
    x, y = (part[:300] for part in load_digits())
    np.savez(folder / "digits.npz", x=x, y=y)
    saved_classifier(folder / "model.keras", keras.optimizers.AdamW(3e-3, weight_decay=1e-2), 8, x, y, epochs=3)
    return "analyze", folder / "model.keras", "--data", folder / "digits.npz", "--snapshots", 3, "--every", 20


@pytest.mark.slow  # tests/runs/test_snapshots.py and tests/reporting have its parts
def test_the_supremum_is_in_every_report(snapshots, tmp_path: Path, in_process) -> None:
    before = snapshots[1].read_bytes()
    out, page = tmp_path / "run.json", tmp_path / "report.html"
    status, text, error = in_process(*snapshots, "--tolerance", 0.5, "--json", out, "--html", page)
    assert status == 0, error
    assert snapshots[1].read_bytes() == before
    run = sdkeras.Analysis.load(out)
    found = run.supremum
    assert found.steps == (0, 20, 40)
    assert found.approximate
    assert found.num_minibatches == run.sharpness_dimension.num_runs
    assert found.value >= found.per_snapshot_values.max()
    low, high = run.sharpness_dimension.interval
    assert low <= found.single_point_value <= high
    runs = 3 * found.num_probes - 1  # at each snapshot, less the estimate's own
    assert found.num_hvps == runs * found.num_minibatches * run.sharpness_dimension.num_steps
    assert "Supremum over 3 snapshots" in text
    assert "after 40 steps" in text
    html = page.read_text()
    for wanted in ('id="snapshots"', "Snapshots and their supremum", "supremum-", "approximate"):
        assert wanted in html
    assert in_process("report", out, "--html", tmp_path / "again.html")[0] == 0


def test_a_dry_run_shows_the_snapshots(snapshots, in_process) -> None:
    status, text, _ = in_process(*snapshots, "--dry-run")
    assert status == 0
    assert "over 3 snapshots, 20 steps apart (40 steps)" in text


@pytest.fixture(scope="module")
def adagrad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    """The commands for a net trained by Adagrad, and for one whose optimizer has taken no step."""
    folder = tmp_path_factory.mktemp("full")
    x, y = load_digits()
    x, y = x[:200, ::2, ::2], y[:200]
    np.savez(folder / "data.npz", x=x, y=y)
    for name, fit in (("model", {"batch_size": 25, "epochs": 3}), ("untrained", {})):
        saved_classifier(folder / f"{name}.keras", keras.optimizers.Adagrad(0.0625), 4, x, y, **fit)
    rest = ("--data", folder / "data.npz", "--map", "full")
    return {name: ("analyze", folder / f"{name}.keras", *rest) for name in ("model", "untrained")}


@pytest.mark.slow  # tests/runs/test_full_map.py has its numbers
def test_the_full_map_of_a_net_of_adagrad(adagrad, tmp_path: Path, in_process) -> None:
    out, page = tmp_path / "run.json", tmp_path / "report.html"
    chosen = ("--set", "golub-kahan.num_steps=50", "--exact-minibatches", 4, "--max-hvps", 9000, "--tolerance", 0.4)
    code, text, error = in_process(*adagrad["model"], "--batch-size", 25, *chosen, "--json", out, "--html", page)
    assert code == 0, error
    assert "full-map: singular values of one whole step mix units, those of 118 weights" in " ".join(text.split())
    found = sdkeras.Analysis.load(out)
    exact, quadrature = found.estimates
    assert [exact.estimator, quadrature.estimator] == ["dense-svd", "golub-kahan"]
    assert quadrature.num_steps >= 50
    assert quadrature.num_hvps == 2 * quadrature.num_steps * quadrature.num_runs
    assert exact.num_hvps == 4 * 236
    assert (exact.map, exact.state_size) == ("full", 236)
    assert exact.interval[0] < quadrature.interval[1]
    assert quadrature.interval[0] < exact.interval[1]
    assert exact.coordinates in page.read_text()


def test_the_plan_shows_the_state(adagrad, in_process) -> None:
    code, text, _ = in_process(*adagrad["model"], "--dry-run")
    assert code == 0
    assert "236 (full)" in text


@pytest.mark.slow
def test_an_optimizer_that_has_taken_no_step_is_told_of(adagrad, tmp_path: Path, in_process) -> None:
    """Keras makes the slots when it loads the file: they are those that training starts with."""
    out = tmp_path / "run.json"
    limits = ("--max-hvps", 10, "--tolerance", 0.9, "--samples", 50, "--json", out)
    code, text, error = in_process(*adagrad["untrained"], *limits)
    assert code == 0, error
    assert "initial-slots: the optimizer Adagrad has taken no step" in " ".join(text.split())
    assert sdkeras.Analysis.load(out).status == "limit on products"


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    """Linear regressions: one whose schedule has come to 0, one with an optimizer for each kind of weight."""
    folder = tmp_path_factory.mktemp("rates")
    np.savez(folder / "data.npz", x=X, y=TARGET)
    o = keras.optimizers
    parts = o.OptimizerMap(o.SGD(0.125), {".*bias": o.Adam(0.0625)})
    optimizers = {"decayed": o.SGD(o.schedules.CosineDecay(0.125, 6)), "several": o.MultiOptimizer(parts)}
    for name, optimizer in optimizers.items():
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)], name="line")
        model.compile(optimizer, "mse")
        model.fit(X, TARGET, batch_size=16, verbose=0)
        model.save(folder / f"{name}.keras")
    return {name: (folder / f"{name}.keras", "--data", folder / "data.npz") for name in optimizers}


@pytest.mark.parametrize(
    ("name", "reason"),
    [("decayed", "CosineDecay"), pytest.param("several", "MultiOptimizer", marks=pytest.mark.slow)],
)
def test_without_one_rate_it_is_measured_as_far_as_it_goes(
    rates, tmp_path: Path, in_process, name: str, reason: str
) -> None:
    run, page = tmp_path / "run.json", tmp_path / "page.html"
    chosen = ("--max-hvps", 100, "--json", run, "--html", page)
    status, out, err = in_process("analyze", *rates[name], *chosen, "--fail-if", "hessian.largest.value > 0")
    assert status == 3, err
    assert "No verdict: " in out
    assert "batch size 32 assumed" in out.lower()
    assert reason in page.read_text()
    for expression in ("edge_of_stability.ratio > 1", "sharpness_dimension.codimension < 3"):
        status, _, err = in_process("report", run, "--quiet", "--fail-if", expression)
        assert (status, reason in err) == (2, True)
        assert err.startswith("sdkeras: error: --fail-if: ")
    status, out, err = in_process("analyze", *rates[name], "--dry-run")
    assert (status, err) == (0, "")
    assert reason in out
    assert "batch size 32 assumed" in out


@pytest.mark.parametrize("command", ["analyze", "track", "lyapunov"])
def test_a_rate_is_checked_before_tensorflow_starts(
    rates, in_process, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    for text in ("peek", "0", "nan", "step:-1"):
        status, out, err = in_process(command, *rates["decayed"], "--learning-rate", text)
        assert (status, out) == (2, "")
        assert "'peak', 'mean' or 'step:N'" in err


def test_lyapunov_refuses_a_step_at_rate_0_and_takes_that_of_the_schedule(rates, in_process) -> None:
    common = ("lyapunov", *rates["decayed"], "--dry-run")
    status, _, err = in_process(*common)
    assert (status, "peak, mean or step:N" in err) == (2, True)
    status, out, _ = in_process(*common, "--learning-rate", "peak")
    assert (status, "learning rate 0.125 (peak of its schedule)" in out) == (0, True)
    status, _, err = in_process(*common, "--learning-rate", "step:6")
    assert (status, "training has taken 6 steps" in err) == (2, True)


def test_track_at_rate_0(rates, tmp_path: Path, in_process) -> None:
    words = ("track", *rates["decayed"], "--batch-size", 16, "--quiet", "--measures", "sharpness,sharpness_ratio")
    common = (*words, "--html", tmp_path / "page.html")
    status, _, err = in_process(*common, "--out", tmp_path / "0", "--fail-if", "values.sharpness_ratio.value > 1")
    assert (status, "CosineDecay" in err) == (2, True), err
    status, out, _ = in_process("track", tmp_path / "0")
    assert (status, "No verdict: the learning rate is 0" in out) == (0, True)
    status, _, err = in_process(*common, "--out", tmp_path / "1", "--learning-rate", "step:5")
    assert status == 0, err
    assert "(step 5 of its schedule)" in (tmp_path / "page.html").read_text()


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """The folder of a model that compiles itself, saved with another loss; its inputs and absolute errors."""
    folder = tmp_path_factory.mktemp("loss")
    (folder / "task.py").write_text(TASK)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(12, 3)).astype("float32"), random.normal(size=(12, 1)).astype("float32")
    np.savez(folder / "data.npz", x=x, y=y)
    objects = load_custom_objects(str(folder / "task.py"))
    with keras.saving.custom_object_scope(objects):
        keras.utils.set_random_seed(0)
        model = objects["Task"]()
        model.build((None, 3))
        model.compile(keras.optimizers.SGD(0.25), keras.losses.Huber(0.5))
        model.save(folder / "task.keras")
    weights, inputs = np.asarray(model.trainable_variables[0], np.float64), x.astype(np.float64)
    return folder, inputs, np.abs(inputs @ weights - y)[:, 0]


@pytest.mark.parametrize("spec", ["", "huber:delta=0.5", "task.py:fourth"])
def test_the_loss_of_the_file_one_with_arguments_and_one_of_the_user(in_process, task, monkeypatch, spec: str) -> None:
    folder, inputs, errors = task
    monkeypatch.chdir(folder)
    status, _, err = in_process(
        *("analyze", "task.keras", "--data", "data.npz", "--batch-size", 12, "--max-hvps", 40, "--quiet"),
        *("--custom-objects", "task.py", "--json", "run.json", *(["--loss", spec] if spec else [])),
    )
    assert status == 0, err
    run = json.loads(Path("run.json").read_text())
    told = [each["message"] for each in run["warnings"] if each["code"] == "loss-arguments-unknown"]
    if spec:
        assert (run["model"]["loss"], told) == (spec, [])
    else:
        assert "compile()" not in err
        optimizer = run["optimizer"]
        found = optimizer["name"], optimizer["learning_rate"], optimizer["learning_rate_source"]
        assert found == ("SGD", 0.25, "file")
        assert "--loss huber:delta=..." in told[0]
    # Second derivatives by the error; without its arguments a Huber loss of the file has delta 1.
    second = {"": errors <= 1.0, "huber:delta=0.5": errors <= 0.5, "task.py:fourth": 12 * errors**2}[spec]
    largest = np.linalg.eigvalsh(inputs.T @ (second[:, None] * inputs) / 12)[-1]
    assert run["hessian"]["largest"]["value"] == pytest.approx(largest, rel=1e-4 if spec else 1e-5)


def test_data_without_targets(in_process, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, activity_regularizer="l2")])
    model.compile("sgd")
    model.save(tmp_path / "m.keras")
    np.savez(tmp_path / "x.npz", x=x)
    np.save(tmp_path / "x.npy", x)
    for data, more in (("x.npz", ("--max-hvps", 60, "--quiet")), ("x.npy", ("--dry-run",))):
        words = ("analyze", tmp_path / "m.keras", "--data", tmp_path / data, "--batch-size", 8)
        status, _, err = in_process(*words, *more)
        assert (status, err) == (0, "")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and data that come as ((x_train, y_train), (x_test, y_test)), as those of a study."""
    folder = tmp_path_factory.mktemp("pairs")
    model = net()
    model.fit(X, Y, batch_size=16, verbose=0)
    model.save(folder / "model.keras")
    np.savez(folder / "train.npz", x=X, y=Y)
    (folder / "mine.py").write_text(PAIRS)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ("analyze", "model.keras", "--dry-run"),
        pytest.param(("lyapunov", "model.keras", "--dry-run"), marks=pytest.mark.slow),
        ("study", "trajectory", "model.keras", "--steps", 4, "--dry-run"),
        pytest.param(("track", "model.keras", "--measures", "sharpness", "--out", "one"), marks=pytest.mark.slow),
    ],
    ids=["analyze", "lyapunov", "study", "track"],
)
def test_of_two_pairs_the_first_is_taken_and_told_in_one_line(
    trained: Path, in_process, monkeypatch: pytest.MonkeyPatch, command: tuple[object, ...]
) -> None:
    monkeypatch.chdir(trained)
    status, _, error = in_process(*command, "--batch-size", 16, "--data", "mine:blobs")
    assert status == 0, error
    assert error.startswith(
        f"sdkeras: warning: data of 'mine:blobs': the callable returned two pairs of {len(X) - 8} and"
    )
    assert error.count("\n") == 1


def test_pairs_of_one_length_are_two_inputs_and_the_error_tells_of_the_other_reading(
    trained: Path, in_process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    status, _, error = in_process("analyze", "model.keras", "--dry-run", "--data", "mine:halves")
    assert status == 2
    assert "If they are ((x_train, y_train), (x_test, y_test)), give one of the pairs." in error
    assert error.count("\n") == 1
    words = ("track", "model.keras", "--measures", "sharpness", "--data", "train.npz", "--test-data", "mine:blobs")
    status, _, error = in_process(*words)
    assert status == 2
    assert "different numbers of samples" in error
