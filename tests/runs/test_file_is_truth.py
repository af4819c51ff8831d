"""Loss, optimizer and rate of a loaded model are those of its file, whatever its class does when it is made."""

import warnings

import keras
import numpy as np
import pytest

from sdkeras.files import models
from sdkeras.files.models import compile_problem, load_model
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.operators.precision import in_precision
from sdkeras.runs.losses import caveats
from sdkeras.runs.options import Options
from sdkeras.runs.problem import read_problem

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
Y = 5 * X[:, :1]
DEFAULT_RATE = 2.0**-14


class Net(keras.Model):
    """A subclass whose weights are known to `predicted`."""

    def __init__(self, units=2, **options):
        super().__init__(**options)
        self.units = units
        self.hidden, self.last = keras.layers.Dense(units, activation="tanh"), keras.layers.Dense(1)

    def build(self, shape):
        self.hidden.build(shape)
        self.last.build((None, self.units))
        self.built = True

    def call(self, inputs):
        return self.last(self.hidden(inputs))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Auto(Net):
    """Compiles itself, as the task models of keras_hub do."""

    def __init__(self, **options):
        super().__init__(**options)
        self.compile()

    def compile(self, optimizer="auto", loss="auto", **options):
        optimizer = keras.optimizers.Adam(DEFAULT_RATE) if optimizer == "auto" else optimizer
        super().compile(optimizer=optimizer, loss="mse" if loss == "auto" else loss, **options)


class Positional(Net):
    """Takes arguments that Keras does not, and no others."""

    def __init__(self, **options):
        super().__init__(**options)
        self.compile()

    def compile(self, rate=DEFAULT_RATE, momentum=0.0):
        super().compile(optimizer=keras.optimizers.SGD(rate, momentum), loss="mae" if momentum else "mse")


class Deaf(Net):
    """Ignores what it is given once it is compiled for the first time."""

    settings = ("adam", "mse")

    def compile(self, *_, **__):
        super().compile(*self.settings)


class Doubling(Net):
    """Puts its own wrapper round the loss that it is given."""

    def compile(self, optimizer, loss, **options):
        super().compile(optimizer=optimizer, loss=Scaled(loss if isinstance(loss, str) else "mae", 3.0), **options)


@keras.saving.register_keras_serializable(package="truth")
class Scaled(keras.losses.Loss):
    def __init__(self, inner="mae", scale=1.0, **options):
        super().__init__(**options)
        self.inner, self.scale = inner, scale

    def call(self, target, output):
        return self.scale * keras.losses.get(self.inner)(target, output)

    def get_config(self):
        return {**super().get_config(), "inner": self.inner, "scale": self.scale}


class Restoring(Net):
    """Writes and reads a compile configuration of its own."""

    def compile(self, rate=DEFAULT_RATE):
        self.rate = rate
        super().compile(optimizer=keras.optimizers.SGD(rate, 0.5), loss="mae")

    def get_compile_config(self):
        return {"rate": self.rate}

    def compile_from_config(self, config):
        self.compile(rate=config["rate"])
        self.optimizer.build(self.trainable_variables)


class Writing(Restoring):
    """Writes a compile configuration of its own, and leaves the reading to Keras."""

    compile_from_config = keras.Model.compile_from_config


class Forgetful(Net):
    """Restores itself with other values than its file holds."""

    def compile_from_config(self, config):
        self.compile(keras.optimizers.Adam(DEFAULT_RATE), "mse")


class Tuned(Net):
    """Has an argument of compile() in its loss, which no file holds."""

    def compile(self, optimizer, loss, strength=1.0, **options):
        self.strength = strength
        super().compile(optimizer=optimizer, loss=loss, **options)

    def compute_loss(self, *arguments, training=True):
        return self.strength * super().compute_loss(*arguments, training=training)


CLASSES = {
    cls.__name__: cls for cls in (Net, Auto, Positional, Deaf, Doubling, Scaled, Restoring, Writing, Forgetful, Tuned)
}


def sgd():
    return keras.optimizers.SGD(0.25, momentum=0.5)


def trained(cls, *arguments, **options):
    keras.utils.set_random_seed(1)
    model = cls(**({"units": 2} if issubclass(cls, Net) else {}))
    model.build((None, 3))
    model.compile(*arguments, **options)
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    return model


def saved(model, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path)
    return str(path)


def loaded_in_silence(path, objects=CLASSES):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return load_model(path, custom_objects=objects)


def mean_absolute(model):
    """The loss in NumPy and float64."""
    w, b, v, c = (np.asarray(weight, np.float64) for weight in model.trainable_variables)
    return float(np.mean(np.abs(np.tanh(X @ w + b) @ v + c - Y)))


def compiled(cls):
    """The model as each class can be compiled with SGD(0.25, 0.5) and the mean absolute error."""
    if cls is Positional:
        return trained(cls, 0.25, 0.5)
    if issubclass(cls, Restoring):
        return trained(cls, 0.25)
    if cls is Deaf:
        Deaf.settings = (sgd(), "mae")
        try:
            return trained(cls)
        finally:
            Deaf.settings = ("adam", "mse")
    return trained(cls, sgd(), "mae")


@pytest.mark.parametrize(
    "name",
    [
        *("Auto", "Positional", "Doubling", "Writing"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("Net", "Deaf", "Restoring", "Forgetful", "Tuned")),
    ],
)
def test_what_was_trained_is_what_the_file_says(tmp_path, capfd, name):
    model = compiled(CLASSES[name])
    loaded = loaded_in_silence(saved(model, tmp_path / "net.keras"))
    assert compile_problem(loaded) is None
    assert "compile()" not in capfd.readouterr().err
    problem = read_problem(loaded, (X, Y), Options(batch_size=8))[0]
    assert (problem.optimizer.name, problem.rate, problem.rate_source) == ("SGD", 0.25, "file")
    assert (problem.optimizer.momentum, problem.optimizer.iterations) == (0.5, 4)
    scale = 3.0 if name == "Doubling" else 1.0
    assert problem.loss.value() == pytest.approx(scale * mean_absolute(model), rel=1e-5)
    for mine, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        assert np.array_equal(mine, theirs)
    assert any(np.any(slot) for slot in loaded.optimizer.variables[2:])


@pytest.mark.parametrize(
    "name", ["Deaf", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Positional", "Doubling"))]
)
def test_a_copy_in_another_precision_has_the_same_loss(name):
    """Their compile() would give the copy its defaults, or fail."""
    model = compiled(CLASSES[name])
    double = EmpiricalLoss(in_precision(model, "float64"), (X, Y), dtype="float64")
    scale = 3.0 if name == "Doubling" else 1.0
    assert double.value() == pytest.approx(scale * mean_absolute(model), rel=1e-6)


class OwnSequential(keras.Sequential):
    def compile(self, optimizer="auto", loss="auto", **options):
        optimizer = keras.optimizers.Adam(DEFAULT_RATE) if optimizer == "auto" else optimizer
        super().compile(optimizer=optimizer, loss="mse" if loss == "auto" else loss, **options)


class OwnFunctional(keras.Model):
    def compile(self, rate=DEFAULT_RATE):
        super().compile(optimizer=keras.optimizers.SGD(rate, momentum=0.5), loss="mae")


def layered(cls):
    keras.utils.set_random_seed(1)
    if issubclass(cls, keras.Sequential):
        model = cls([keras.Input((3,)), keras.layers.Dense(2, "tanh"), keras.layers.Dense(1)])
    else:
        inputs = keras.Input((3,))
        model = cls(inputs, keras.layers.Dense(1)(keras.layers.Dense(2, "tanh")(inputs)))
    if cls is OwnFunctional:
        model.compile(0.25)
    else:
        model.compile(optimizer=sgd(), loss="mae")
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    return model


@pytest.mark.parametrize(
    ("cls", "extension"),
    [
        *[(OwnSequential, "keras"), (OwnFunctional, "h5")],
        *[
            pytest.param(cls, extension, marks=pytest.mark.slow)
            for cls, extension in (
                *[(OwnSequential, "h5"), (OwnFunctional, "keras")],
                *[(keras.Sequential, "keras"), (keras.Sequential, "h5")],
            )
        ],
    ],
)
def test_sequential_and_functional_models_in_both_formats(tmp_path, cls, extension):
    model = layered(cls)
    slots = [np.asarray(variable) for variable in model.optimizer.variables]  # saving as .h5 changes the model
    loaded = loaded_in_silence(saved(model, tmp_path / f"net.{extension}"), {cls.__name__: cls})
    assert compile_problem(loaded) is None
    problem = read_problem(loaded, (X, Y), Options(batch_size=8))[0]
    assert (problem.rate, problem.optimizer.momentum, problem.optimizer.iterations) == (0.25, 0.5, 4)
    assert problem.loss.value() == pytest.approx(mean_absolute(model), rel=1e-5)
    for mine, theirs in zip(loaded.optimizer.variables, slots, strict=True):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("extension", ["keras", pytest.param("h5", marks=pytest.mark.slow)])
def test_loss_scaling_of_a_class_that_compiles_itself(tmp_path, extension):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = layered(OwnSequential)
    finally:
        keras.config.set_dtype_policy("float32")
    slots = [np.asarray(variable) for variable in model.optimizer.variables]
    loaded = loaded_in_silence(saved(model, tmp_path / f"net.{extension}"), {"OwnSequential": OwnSequential})
    assert compile_problem(loaded) is None
    assert float(loaded.optimizer.inner_optimizer.learning_rate) == 0.25
    for mine, theirs in zip(loaded.optimizer.variables, slots, strict=True):
        assert np.array_equal(mine, theirs)


def test_loss_weights_of_the_file(tmp_path):
    model = trained(Auto, sgd(), ["mae"], loss_weights=[0.5])
    loaded = loaded_in_silence(saved(model, tmp_path / "net.keras"))
    assert EmpiricalLoss(loaded, (X, Y)).value() == pytest.approx(0.5 * mean_absolute(model), rel=1e-5)


def test_an_argument_of_compile_that_the_loss_depends_on_is_told(tmp_path):
    loaded = loaded_in_silence(saved(trained(Tuned, sgd(), "mae", strength=0.125), tmp_path / "net.keras"))
    (told,) = caveats(loaded)
    assert told.code == "loss-arguments-unknown"
    assert "strength of Tuned.compile()" in told.message
    assert caveats(loaded, with_loss=False) == ()
    assert caveats(trained(Tuned, sgd(), "mae", strength=0.125)) == ()
    assert caveats(loaded_in_silence(saved(compiled(Positional), tmp_path / "other.keras"))) == ()


class Uncompiled(Net):
    """Compiles itself when it is loaded, though its file was saved without."""

    def __init__(self, ready=True, **options):
        super().__init__(**options)
        if ready:
            self.compile("adam", "mse")


def test_a_file_without_a_loss_has_none_of_its_class(tmp_path):
    model = Uncompiled(ready=False)
    model.build((None, 3))
    loaded = loaded_in_silence(saved(model, tmp_path / "net.keras"), {"Uncompiled": Uncompiled})
    assert not loaded.compiled
    problem = compile_problem(loaded)
    assert "saved without being compiled" in problem
    assert "`loss` and `learning_rate`" in problem
    with pytest.raises(models.ModelError, match="not compiled"):
        read_problem(loaded, (X, Y), Options())[0]
    problem = read_problem(loaded, (X, Y), Options(loss="mae", learning_rate=0.5))[0]
    assert (problem.rate, problem.rate_source) == (0.5, "given")
    assert problem.loss.value() == pytest.approx(mean_absolute(model), rel=1e-5)


class NoConfig(keras.losses.Loss):
    def __init__(self, margin, **options):
        super().__init__(**options)
        self.margin = margin

    def call(self, target, output):
        return keras.ops.mean(keras.ops.abs(target - output), -1)


def test_a_default_loss_never_stands_for_one_that_cannot_be_made(tmp_path):
    """And the message does not ask for the file of custom objects that was given."""
    path = saved(trained(Auto, sgd(), NoConfig(margin=1.0)), tmp_path / "net.keras")
    loaded = loaded_in_silence(path, {**CLASSES, "NoConfig": NoConfig})
    assert not loaded.compiled
    problem = compile_problem(loaded)
    assert "margin" in problem
    assert "`loss` and `learning_rate`" in problem
    assert "`custom_objects" not in problem
    unknown = compile_problem(loaded_in_silence(path))
    assert "Keras does not know 'NoConfig'" in unknown
    assert "`custom_objects=FILE`" in unknown


def test_the_rate_of_a_schedule_is_kept_where_the_slots_are_lost(tmp_path):
    """One slot is missing in the file: the step is known all the same, and with it the rate."""
    import io
    import zipfile

    import h5py

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.PolynomialDecay(0.5, 16, 0.0)), "mae")
    model.fit(X, Y, batch_size=2, epochs=2, verbose=0)  # 8 steps: half of the way down
    path, lost = saved(model, tmp_path / "net.keras"), tmp_path / "lost.keras"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(lost, "w") as new:
        weights = io.BytesIO(old.read("model.weights.h5"))
        with h5py.File(weights, "r+") as file:
            del file["optimizer/vars/2"]
        for name in old.namelist():
            new.writestr(name, weights.getvalue() if name == "model.weights.h5" else old.read(name))
    problem, notes = read_problem(loaded_in_silence(str(lost)), (X, Y), Options(batch_size=8))
    assert (problem.optimizer.iterations, problem.rate) == (8, 0.25)
    assert problem.scaling is None
    assert problem.exponents.name == "hessian"
    told = {warning.code: warning.message for warning in notes}
    assert "could not be restored" in told["compiled-part"]
    assert "could not be read" in told["hessian-map"]
