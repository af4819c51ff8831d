"""A trained model comes back from the user's factory and the arrays in its folder, bit by bit; no code in it runs."""

import json
import shutil
from pathlib import Path

import attrs
import keras
import numpy as np
import pytest

from sdkeras.errors import ModelError
from sdkeras.files.user_code import own_objects
from sdkeras.study.definition import read_study
from sdkeras.study.measure import measure
from sdkeras.study.run_files import RunFolder, Trained
from sdkeras.study.train import StudyData, Trial, factory, rebuilt, train
from sdkeras.study.worker import Worker


@attrs.frozen
class Done:
    """One trained run with the model as `fit` left it."""

    trial: Trial
    trained: Trained
    live: keras.Model

    @property
    def folder(self) -> RunFolder:
        return self.trial.folder

    def again(self) -> keras.Model:
        return rebuilt(self.trial, self.trained)

    def values(self, model: keras.Model) -> dict[str, tuple[float, float]]:
        """Every measure of the study by the worker's own way."""
        with keras.saving.custom_object_scope(own_objects(self.trial.make, Path.cwd().resolve())):
            measured = measure(self.trial, model, tuple(self.trial.study.by_column()), 1)
        return {name: (each.value, each.error) for name, each in measured.values.items()}


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written):
    """Trains the run of one optimizer."""
    save = keras.Model.save_weights

    def make(optimizer: str) -> Done:
        measures = "slq = { num_steps = 8 }\nlambda_1 = {}\nsharpness = {}\ntrace = {}"
        texts = {"model": "unbuilt", "data": "products", "batch_size": 16, "measures": measures}
        study = written(**texts, grid=f"optimizer = '{optimizer}'")
        folder = RunFolder(tmp_path / "out" / "runs" / study.runs[0].name)
        folder.path.mkdir(parents=True)
        models = []
        monkeypatch.setattr(keras.Model, "save_weights", lambda model, path: (models.append(model), save(model, path)))
        trial = Trial(study, study.runs[0], factory(study), StudyData.of(study), folder)
        return Done(trial, train(trial), models[0])

    return make


def state(model: keras.Model) -> list[np.ndarray]:
    """Weights and moving averages, then everything that the optimizer keeps, its rate included.

    Keras saves no states of random generators; every measure draws by seeds of its own.
    """
    return [keras.ops.convert_to_numpy(each) for each in (*model.weights, *model.optimizer.variables)]


@pytest.mark.parametrize(
    "optimizer",
    ["adam", *(pytest.param(each, marks=pytest.mark.slow) for each in ("two", "cosine", "nadam", "scaled"))],
)
def test_weights_and_optimizer_come_back_bit_by_bit(done, optimizer: str) -> None:
    there = done(optimizer)
    before = state(there.live)
    after = state(there.again())
    assert len(before) == len(after) > 12
    for left, right in zip(before, after, strict=True):
        assert left.dtype == right.dtype
        assert np.array_equal(left, right)
    assert there.trained.num_steps == 6


@pytest.mark.slow
def test_measured_later_it_has_the_numbers_of_right_after_training(done) -> None:
    there = done("adam")
    right_after = there.values(there.live)
    assert there.values(there.again()) == right_after
    # A folder of version 0.1.0: the whole model, of which only the arrays are read.
    there.live.save(there.folder.old_model)
    there.folder.weights.unlink()
    old = attrs.evolve(there, trained=attrs.evolve(there.trained, optimizer=""))
    assert there.values(old.again()) == right_after
    assert all(value != 0 for value, _ in right_after.values())
    # The test sees whether slots come back: lambda_1 is another one with others.
    for slot in there.live.optimizer.variables:
        if "velocity" in slot.path:
            slot.assign(2 * slot)
    assert there.values(there.live)["lambda_1"] != right_after["lambda_1"]


# Code comes with a model's file of either format, and an older study kept such a file.
@pytest.mark.parametrize(
    ("kind", "old"),
    [
        (".keras", True),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((".keras", False), (".h5", True), (".h5", False))),
    ],
)
def test_code_in_a_file_of_the_folder_is_never_run(done, tmp_path: Path, kind: str, old: bool) -> None:
    there, marker = done("cosine"), tmp_path / "marker"
    folder = there.folder
    write = f"open({str(marker)!r}, 'a').write('ran') and None"
    lambda_of = eval(f"lambda x: [x, {write}][0]")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda_of), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    place = folder.old_model if old else folder.weights
    trap = tmp_path / f"trap{kind}"
    model.save(trap)
    keras.saving.load_model(trap, safe_mode=False, compile=False)
    assert marker.exists()
    marker.unlink()

    folder.weights.unlink()
    shutil.copy(trap, place)
    with pytest.raises(ModelError, match=r"(is damaged, or its weights do not fit|does not hold the state).*Dele"):
        there.again()
    # The same code beside the right weights.
    there.live.save_weights(folder.weights)
    there.again()
    assert not marker.exists()


@pytest.mark.slow
def test_another_factory_is_noticed(done, tmp_path: Path) -> None:
    there = done("adam")
    with pytest.raises(ModelError, match=r"the optimizer of the factory .* differs from when .* Delete"):
        attrs.evolve(there, trained=attrs.evolve(there.trained, optimizer="0" * 16)).again()
    with pytest.raises(ModelError, match=r"the file of the factory .* differs from when .* Delete"):
        attrs.evolve(there, trained=attrs.evolve(there.trained, optimizer="", code="0" * 16)).again()
    fewer = attrs.evolve(there.trained, num_steps=5)
    with pytest.raises(
        ModelError, match=r"does not hold the state of the factory's optimizer Adam after 5 steps\. Del"
    ):
        attrs.evolve(there, trained=fewer).again()
    other = attrs.evolve(there.trained.train, loss=2 * there.trained.train.loss)
    with pytest.raises(ModelError, match=r"has the training loss .*, and had .* when it was trained; restore"):
        attrs.evolve(there, trained=attrs.evolve(there.trained, train=other)).again()
    there.folder.weights.unlink()
    with pytest.raises(ModelError, match=r"there is no file .*model\.weights\.h5 with the weights"):
        there.again()
    assert json.loads(there.folder.training.read_text())["optimizer"] == there.trained.optimizer != ""


@pytest.mark.slow
def test_measuring_that_version_0_1_0_did_not_finish_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(Path(__file__).parents[1] / "data" / "v0.1.0", kept)
    monkeypatch.chdir(kept)
    monkeypatch.syspath_prepend(str(kept))
    study = read_study("grid.toml")
    run = study.runs[1]
    folder = RunFolder(kept / "study" / "runs" / run.name)
    before = folder.measured()
    assert before is not None
    folder.measures.unlink()
    folder.analysis.unlink()
    assert Worker(study, folder.path.parent, 1).do(run) is None
    after = folder.measured()
    for name in ("sharpness", "trace"):
        # Weights and data are the same to the bit; the product's rounding is of float32 and of the processor.
        assert after.values[name].value == pytest.approx(before.values[name].value, rel=1e-4)
    assert not folder.weights.exists()
