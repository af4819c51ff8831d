"""Losses by name and arguments, losses as functions, and what a file does not hold of a loss."""

import inspect
import warnings

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.errors import ModelError, SdkerasError
from sdkeras.files.models import load_model
from sdkeras.operators.hessian import HessianOperator
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.runs import losses
from sdkeras.runs.losses import caveats
from sdkeras.runs.options import Options
from sdkeras.runs.problem import read_problem

CLASSES = sorted(
    (cls for cls in vars(keras.losses).values() if inspect.isclass(cls) and cls is not keras.losses.Loss),
    key=lambda cls: cls.__name__,
)
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(10, 3)).astype(np.float32)
Y = RANDOM.normal(size=(10, 1)).astype(np.float32)
QUICK = {"batch_size": 10, "max_hvps": 40, "allow_unverified": True}


def linear(loss="mse", optimizer=None, outputs=1):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(outputs, use_bias=False)])
    if loss is not None:
        model.compile(optimizer or keras.optimizers.SGD(0.25), loss)
    return model


def huber(model, delta):
    """In NumPy and float64."""
    error = np.abs(X @ np.asarray(model.trainable_variables[0], np.float64) - Y)
    return float(np.mean(np.where(error <= delta, error**2 / 2, delta * error - delta**2 / 2)))


# Names with arguments


def other_than(default):
    if isinstance(default, bool):
        return not default
    return 0.125 if default is None or isinstance(default, float) else default + 1


def changed_arguments(cls):
    common = ("name", "dtype", "fn", "reduction")
    return {name: other_than(default) for name, default in losses.arguments(cls).items() if name not in common}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_loss_of_keras_is_known_with_all_its_arguments(cls):
    """In words and back, which is what a record holds."""
    changed = changed_arguments(cls)
    loss = cls(**changed, reduction="sum")
    words = losses.loss_words(loss)
    again = losses.from_spec(words)
    assert type(again) is cls
    assert again.reduction == "sum"
    assert {name: value for name, value in losses._values(again).items() if name in changed} == changed
    assert losses.loss_words(again) == words
    for name in (cls.__name__, cls().name, losses._spec_name(cls())):
        assert isinstance(losses.from_spec(f"{name}:reduction=sum"), cls)
    assert losses.loss_words(cls()) == losses._spec_name(cls())


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("huber:delta=.5", {"delta": 0.5}),
        ("huber:delta=1e-3", {"delta": 1e-3}),
        ("sparse_categorical_crossentropy:from_logits", {"from_logits": True, "ignore_class": None}),
        (
            "sparse_categorical_crossentropy:from_logits=False:ignore_class=-1",
            {"from_logits": False, "ignore_class": -1},
        ),
        ("categorical_focal_crossentropy:alpha=0.3:gamma=2.5", {"alpha": 0.3, "gamma": 2.5}),
        ("CategoricalFocalCrossentropy:alpha=[0.25, 0.75]", {"alpha": [0.25, 0.75], "gamma": 2.0}),
        ("dice:axis=null", {"axis": None}),
        ("bce:label_smoothing=0.125:from_logits=true", {"label_smoothing": 0.125, "from_logits": True}),
    ],
)
def test_values(spec, values):
    held = losses.from_spec(spec)._fn_kwargs
    assert {name: held[name] for name in values} == values


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("hubr", ("'hubr' is unknown to Keras", "did you mean 'huber'")),
        ("huber:dleta=1", ("no argument 'dleta'", "did you mean 'delta'", "it takes: delta, reduction")),
        ("huber:delta", ("'delta' without a value", "huber:delta=1.0")),
        ("huber:delta=wide", ("a finite number for delta", "'wide'")),
        ("huber:delta=nan", ("a finite number for delta",)),
        ("huber:delta=true", ("a finite number for delta",)),
        ("bce:from_logits=1", ("true or false for from_logits",)),
        ("huber:reduction=often", ("cannot be made", "often")),
        ("huber:", ("no argument ''",)),
        ("huber:name=a", ("no argument 'name'",)),
        ("mse:from_logits", ("no argument 'from_logits'", "it takes: reduction")),
    ],
)
def test_wrong_specifications(spec, parts):
    with pytest.raises(ModelError) as error:
        sdkeras.analyze(linear(), (X, Y), loss=spec, **QUICK)
    for part in parts:
        assert part in str(error.value)


def test_the_loss_that_was_named_is_analysed_and_recorded():
    model = linear()
    for dtype in ("float32", "float64"):
        problem = read_problem(model, (X, Y), Options(loss="huber:delta=0.5", dtype=dtype))[0]
        assert problem.loss.value() == pytest.approx(huber(model, 0.5), rel=1e-6)
        assert problem.loss_words == "huber:delta=0.5"
    assert read_problem(linear(keras.losses.Huber(0.5)), (X, Y), Options())[0].loss_words == "huber:delta=0.5"
    assert read_problem(model, (X, Y), Options())[0].loss_words == "mse"


# Functions


def penalised(model, batch):
    """Mean squared error and a penalty, as a training step of one's own may have it."""
    x, y = batch
    return keras.ops.mean((model(x, training=True) - y) ** 2) + 3.0 * keras.ops.sum(model.trainable_variables[0] ** 2)


def masked(model, batch):
    """The sum over the examples that count, and their number."""
    x, y, mask = batch
    return keras.ops.sum(mask * (model(x, training=True) - y)[:, 0] ** 2), keras.ops.sum(mask)


def of_keras(y_true, y_pred):
    return keras.ops.mean((y_true - y_pred) ** 2, -1)


def test_a_mean_with_a_penalty():
    model = linear(loss=None)
    inputs = X.astype(np.float64)
    loss = EmpiricalLoss(model, (X, Y), batch_size=4, dtype="float64", loss_fn=penalised)
    w = np.asarray(model.trainable_variables[0], np.float64)
    assert loss.value() == pytest.approx(np.mean((inputs @ w - Y) ** 2) + 3 * np.sum(w**2), rel=1e-12)
    hessian = HessianOperator(loss).matmat(np.eye(3))
    assert np.allclose(hessian, 2 * inputs.T @ inputs / 10 + 6 * np.eye(3), rtol=1e-10)


@pytest.mark.parametrize("batch_size", [3, 4, 10])
def test_a_sum_with_its_denominator_does_not_depend_on_the_batch_size(batch_size):
    model, mask = linear(loss=None), (np.arange(10) % 3 > 0).astype(np.float32)
    mask[:3] = 0.5
    loss = EmpiricalLoss(model, (X, Y, mask), batch_size=batch_size, dtype="float64", loss_fn=masked)
    inputs, w = X.astype(np.float64), np.asarray(model.trainable_variables[0], np.float64)
    error = (inputs @ w - Y)[:, 0]
    assert loss.value() == pytest.approx(np.sum(mask * error**2) / mask.sum(), rel=1e-12)
    hessian = HessianOperator(loss).matmat(np.eye(3))
    assert np.allclose(hessian, 2 * inputs.T @ (mask[:, None] * inputs) / mask.sum(), rtol=1e-10)


def of_two_targets(model, batch):
    x, y = batch
    return keras.ops.mean((model(x, training=True) - y[:, :1] - y[:, 1:]) ** 2)


def test_targets_that_only_the_function_understands():
    model = linear(keras.losses.MeanSquaredError())
    problem = read_problem(model, (X, np.hstack([Y, Y**2, Y])[:, :2]), Options(loss_fn=of_two_targets))[0]
    error = X.astype(np.float64) @ np.asarray(model.trainable_variables[0], np.float64) - Y - Y**2
    assert problem.loss.value() == pytest.approx(np.mean(error**2), rel=1e-5)
    with pytest.raises(SdkerasError, match=r"\(10, 4\)"):
        read_problem(model, (np.hstack([X, Y]), Y), Options(loss_fn=of_two_targets))[0]


CODE = """
import keras
from helper import strength
def penalised(model, batch):
    x, y = batch
    kernel = model.trainable_variables[0]
    return keras.ops.mean((model(x, training=True) - y) ** 2) + strength * keras.ops.sum(kernel ** 2)
def of_keras(y_true, y_pred):
    return keras.ops.mean((y_true - y_pred) ** 2, -1)
"""


@pytest.fixture
def user_file(tmp_path, monkeypatch):
    (tmp_path / "helper.py").write_text("strength = 3.0\n")
    (tmp_path / "my_losses.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "spec", ["my_losses.py:penalised", pytest.param("my_losses:penalised", marks=pytest.mark.slow)]
)
def test_functions_in_files_and_modules(user_file, spec):
    model = linear()
    w = np.asarray(model.trainable_variables[0], np.float64)
    expected = np.linalg.eigvalsh(2 * X.T.astype(np.float64) @ X / 10 + 6 * np.eye(3))[-1]
    run = sdkeras.analyze(model, (X, Y), loss=spec, **QUICK)
    assert run.hessian.largest.value == pytest.approx(expected, rel=1e-5)
    assert run.model.loss == spec
    assert run.optimizer.learning_rate == 0.25
    direct = read_problem(model, (X, Y), Options(loss_fn=penalised))[0]
    assert direct.loss.value() == pytest.approx(np.mean((X @ w - Y) ** 2) + 3 * np.sum(w**2), rel=1e-6)
    assert direct.loss_words.endswith("test_losses:penalised")
    steps = sdkeras.lyapunov(model, (X, Y), loss=spec, batch_size=10, num_steps=3, transient=0, num_exponents=1)
    # Full batches of a quadratic: the least contracting direction of I - eta H, from any start to within its bounds.
    assert steps.model.loss == spec
    assert (
        steps.lyapunov.values[0]
        <= np.log(np.abs(1 - 0.25 * np.linalg.eigvalsh(2 * X.T.astype(np.float64) @ X / 10 + 6 * np.eye(3)))).max()
        + 1e-6
    )


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("my_losses.py:nothing", ("defines no function 'nothing'", "penalised")),
        ("none.py:penalised", ("'none.py' is not a file",)),
        ("my_losses:nothing", ("has no 'nothing'",)),
        ("my_losse:penalised", ("no module 'my_losse'", "Keras has no loss 'my_losse'")),
        ("my_losses.py:of_keras", ("must take (model, batch)", "`custom_objects=FILE`")),
    ],
)
def test_functions_that_cannot_be_had(user_file, spec, parts):
    with pytest.raises(SdkerasError) as error:
        sdkeras.analyze(linear(), (X, Y), loss=spec, **QUICK)
    for part in parts:
        assert part in str(error.value)


def test_one_loss_at_a_time():
    with pytest.raises(ModelError, match="give one of them"):
        sdkeras.analyze(linear(), (X, Y), loss="mse", loss_fn=penalised, **QUICK)
    with pytest.raises(ModelError, match=r"must take \(model, batch\)"):
        sdkeras.analyze(linear(), (X, Y), loss_fn=of_keras, **QUICK)


# What files leave out


class Margin(keras.losses.Loss):
    """A user's loss without a get_config of its own."""

    def __init__(self, margin=0.5, **options):
        super().__init__(**options)
        self.margin = margin

    def call(self, target, output):
        return keras.ops.mean(keras.ops.relu(keras.ops.abs(target - output) - self.margin), -1)


class Wider(Margin):
    """Passes the argument of its base on."""

    def __init__(self, scale=1.0, **options):
        super().__init__(**options)
        self.scale = scale

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


OBJECTS = {"Margin": Margin, "Wider": Wider}


def stored(model, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path)
    return load_model(str(path), custom_objects=OBJECTS)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_arguments_that_keras_leaves_out_are_told(tmp_path, cls):
    """Whatever a changed loss has lost in the file, and nothing that it has kept."""
    changed = changed_arguments(cls)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Dense(2)])
    model.compile("sgd", cls(**changed))
    loaded = stored(model, tmp_path / "net.keras")
    lost = {name for name, value in changed.items() if losses._values(loaded.loss)[name] != value}
    told = caveats(loaded)
    assert {warning.code for warning in told} == ({"loss-arguments-unknown"} if lost else set())
    for name in lost:
        assert name in told[0].message
    assert lost == {"Huber": {"delta"}, "CosineSimilarity": {"axis"}, "SparseCategoricalCrossentropy": {"axis"}}.get(
        cls.__name__, set()
    )


@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        (lambda: keras.losses.Huber(0.1), ("delta of Huber", "default 1.0 was taken", "(`loss='huber:delta=...'`)")),
        (lambda: Margin(2.0), ("margin of Margin", "default 0.5 was taken", "(`loss='Margin:margin=...'`)")),
        (lambda: Wider(2.0, margin=3.0), ("margin of Wider", "(`loss='Wider:scale=2.0:margin=...'`)")),
        (lambda: [keras.losses.Huber(0.1)], ("delta of Huber",)),
    ],
    ids=["huber", "own", "own with a base", "list"],
)
@pytest.mark.parametrize("extension", ["keras", "h5"])
def test_the_warning(tmp_path, loss, parts, extension):
    (told,) = caveats(stored(linear(loss()), tmp_path / f"net.{extension}"))
    for part in parts:
        assert part in told.message


def test_an_axis_is_no_question_where_outputs_are_vectors(tmp_path):
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert caveats(stored(linear(sparse, outputs=4), tmp_path / "flat.keras")) == ()
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Dense(2)])
    model.compile("sgd", sparse)
    (told,) = caveats(stored(model, tmp_path / "deep.keras"))
    assert "(`loss='sparse_categorical_crossentropy:from_logits:axis=...'`)" in told.message


def codes(run):
    return [warning.code for warning in run.warnings]


@pytest.mark.slow
def test_it_reaches_every_answer_and_ends_where_the_loss_is_given(tmp_path):
    model = linear(keras.losses.Huber(0.5))
    path = tmp_path / "net.keras"
    loaded = stored(model, path)
    assert codes(sdkeras.analyze(loaded, (X, Y), **QUICK)).count("loss-arguments-unknown") == 1
    told = sdkeras.analyze(loaded, (X, Y), loss="huber:delta=0.5", **QUICK)
    assert told.model.loss == "huber:delta=0.5"
    assert "loss-arguments-unknown" not in codes(told)
    assert not any(warning.code == "loss-arguments-unknown" for warning in read_problem(model, (X, Y), Options())[1])
    # The second derivative of the loss is 1 in the examples within delta, 0 in the others.
    inputs = X.astype(np.float64)
    within = np.abs(inputs @ np.asarray(model.trainable_variables[0], np.float64) - Y)[:, 0] <= 0.5
    largest = np.linalg.eigvalsh(inputs[within].T @ inputs[within] / 10)[-1]
    assert told.hessian.largest.value == pytest.approx(largest, rel=1e-5)
    steps = {"batch_size": 10, "num_steps": 2, "transient": 0, "num_exponents": 1}
    assert "loss-arguments-unknown" in codes(sdkeras.lyapunov(loaded, (X, Y), **steps))
    options = {"measures": ["sharpness"], "batch_size": 10}
    log = sdkeras.track([path], (X, Y), log_dir=tmp_path / "log", **options)
    assert any("delta of Huber" in note for note in log.measurements[0].notes)
    log = sdkeras.track([path], (X, Y), log_dir=tmp_path / "given", loss="huber:delta=0.5", **options)
    assert not log.measurements[0].notes
    assert log.measurements[0].values["sharpness"].value == pytest.approx(largest, rel=1e-4)


def test_track_with_a_function(tmp_path):
    path = tmp_path / "net.keras"
    model = linear()
    model.save(path)
    options = {"measures": ["sharpness"], "batch_size": 10, "loss_fn": penalised}
    log = sdkeras.track([path], (X, Y), log_dir=tmp_path / "log", **options)
    expected = np.linalg.eigvalsh(2 * X.T.astype(np.float64) @ X / 10 + 6 * np.eye(3))[-1]
    assert log.measurements[0].values["sharpness"].value == pytest.approx(expected, rel=1e-4)
    assert sdkeras.track([path], (X, Y), log_dir=tmp_path / "log", **options).measurements == log.measurements
