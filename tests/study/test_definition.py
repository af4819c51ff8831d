"""The definition of a study: what is read, what is put over it, and what is refused in one clear line."""

from pathlib import Path

import pytest

from sdkeras.errors import SdkerasError
from sdkeras.study.definition import Study, differences, read_study, run_name

GOOD = """
[study]
model = "nets:net"
data = "nets:data"
epochs = 5
stop = { loss_below = 0.1 }

[grid]
seed = [1, 2]
width = [8, 16]
batch_size = 32
learning_rate = [0.1, 1e-5, 2.0]

[measures]
lambda_1 = {}
sd = { minibatches = 4 }
sd-kde = { bandwidth = 0.01 }
e_alpha = { trajectory = "backward" }
ph_dimension = { trajectory = ["forward"], metric = ["data"] }

[full.study]
steps = 700

[full.grid]
seed = 5

[full.trajectory]
steps = 5000
"""


def read(folder: Path, text: str, **options: bool) -> Study:
    path = folder / "grid.toml"
    path.write_text(text)
    return read_study(str(path), **options)


def test_a_study_is_the_product_of_its_lists(tmp_path: Path) -> None:
    study = read(tmp_path, GOOD)
    assert list(study.grid) == ["learning_rate", "batch_size", "width", "seed"]
    assert len(study.runs) == 12
    assert study.runs[0].name == "lr0.1-bs32-width8-seed1"
    assert study.runs[-1].name == "lr2-bs32-width16-seed2"
    assert study.runs[4].settings == {"learning_rate": 1e-5, "batch_size": 32, "width": 8, "seed": 1}
    assert study.runs[4].name == "lr1e-05-bs32-width8-seed1"
    assert list(study.columns) == [
        *("lambda_1", "sd", "sd-kde", "e_alpha-backward-euclidean", "e_alpha-backward-data"),
        "ph_dimension-forward-data",
    ]
    assert study.recorded == ["e_alpha-backward-data", "e_alpha-backward-euclidean"]
    assert Study.from_json(study.to_json()) == study
    assert Study.from_json(study.to_json()).runs == study.runs


def test_the_order_in_the_file_makes_no_difference_and_a_grid_without_a_seed_has_one(tmp_path: Path) -> None:
    study, seedless = read(tmp_path, GOOD), GOOD.replace("seed = [1, 2]\n", "")
    other = read(tmp_path, seedless.replace("2.0]", "2.0]\nseed = [1, 2]"))
    assert other.runs == study.runs
    assert other.training() == study.training()
    assert read(tmp_path, seedless).runs[0].name.endswith("-seed0")


def test_full_is_put_over_key_by_key(tmp_path: Path) -> None:
    study = read(tmp_path, GOOD, full=True)
    assert (study.epochs, study.steps) == (None, 700)
    assert study.stop == {"loss_below": 0.1}
    assert study.grid["seed"] == (5,)
    assert study.grid["width"] == (8, 16)
    assert study.trajectory.steps == 5000
    with pytest.raises(SdkerasError, match=r"no table \[full\]"):
        read(tmp_path, GOOD.partition("[full.study]")[0], full=True)


def test_differences_name_what_changed(tmp_path: Path) -> None:
    study, full = read(tmp_path, GOOD), read(tmp_path, GOOD, full=True)
    found = differences(study.training(), full.training())
    assert found[:2] == ["epochs was 5 and is None", "steps was None and is 700"]
    assert differences(study.training(), study.training()) == []
    # Iterates are recorded while training: other ones would need another training.
    changed = read(tmp_path, GOOD.replace('trajectory = "backward"', 'metric = "data"'))
    assert len(differences(study.training(), changed.training())) == 1
    # Measures of the trained model would not.
    assert differences(study.training(), read(tmp_path, GOOD.replace("lambda_1", "trace")).training()) == []


def test_values_rest_on_their_settings_alone(tmp_path: Path) -> None:
    by = read(tmp_path, GOOD).by_column()
    longer = read(tmp_path, GOOD + "\n[trajectory]\nsteps = 2000\n").by_column()
    assert by["sd"] == longer["sd"]
    assert by["ph_dimension-forward-data"] != longer["ph_dimension-forward-data"]
    assert by["sd-kde"] != read(tmp_path, GOOD.replace("0.01 }", "0.02 }")).by_column()["sd-kde"]


def test_the_papers_map_has_columns_beside_those_of_the_optimizers_own(tmp_path: Path) -> None:
    with_both = '\n[analysis]\nmap = ["hessian", "auto"]\n'
    own, both, papers = (read(tmp_path, GOOD + more) for more in ("", with_both, '\n[analysis]\nmap = "hessian"\n'))
    assert list(both.columns)[:6] == [
        *("lambda_1", "lambda_1-map-hessian", "sd", "sd-map-hessian", "sd-kde", "sd-kde-map-hessian")
    ]
    assert set(both.columns) - set(own.columns) == {f"{name}-map-hessian" for name in ("lambda_1", "sd", "sd-kde")}
    assert read(tmp_path, GOOD + '\n[analysis]\nmap = "auto"\n').by_column() == own.by_column()
    # What was measured before it was asked for stays, and nothing is trained again.
    assert {column: both.by_column()[column] for column in own.columns} == own.by_column()
    assert both.by_column()["sd-map-hessian"] == papers.by_column()["sd"] != own.by_column()["sd"]
    assert both.training() == own.training()
    assert Study.from_json(both.to_json()) == both


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[study]", "[study", "is not TOML"),
        ("[grid]", "[gird]", "the file has no 'gird'; did you mean 'grid'"),
        ("[study]\n", "[study]\nepoch = 3\n", r"\[study\] has no 'epoch'; did you mean 'epochs'"),
        ("epochs = 5\n", "", "either epochs or steps"),
        ("epochs = 5\n", "epochs = 5\nsteps = 3\n", "either epochs or steps"),
        ("epochs = 5\n", "epochs = 0\n", "epochs is 0"),
        ('"nets:net"', '"nets.py"', "it must be 'module:callable'"),
        ('"nets:data"', '"train.npz"', "needs test_data"),
        ('model = "nets:net"\n', "", r"\[study\] model: there is none; give a text"),
        ("loss_below", "loss_under", "no 'loss_under'"),
        ("= 0.1 }", '= "low" }', r"\[study\] stop.*expected a number, got 'low'"),
        ("epochs = 5", "epochs = 5.0", r"\[study\] epochs: expected int, got 5.0"),
        ("seed = [1, 2]", "seed = [-1]", "seed has the value -1"),
        ("batch_size = 32", "batch_size = 3.5", "batch_size has the value 3.5"),
        ("[0.1, 1e-5, 2.0]", "[0.1, -2.0]", "learning_rate has the value -2.0"),
        ("[0.1, 1e-5, 2.0]", "[0.1, 0.1]", "twice"),
        ("[0.1, 1e-5, 2.0]", "[0.1, inf]", r"\[grid\] \w+\.1 is inf; it must be a finite number"),
        ("loss_below = 0.1", "loss_below = nan", r"\[study\] stop\.loss_below is nan; it must be"),
        ("[0.1, 1e-5, 2.0]", "[]", "is empty"),
        ("[8, 16]", "[[8], [16]]", r"width has the value \[8\]"),
        ("lambda_1 = {}", "lambda1 = {}", "did you mean 'lambda_1'"),
        ("lambda_1 = {}", "lambda_1 = 3", "it must be a table"),
        ("lambda_1 = {}", "lambda_1 = { runs = 2 }", "lambda_1 has no 'runs'; it has: no keys"),
        ("minibatches = 4", "minibatches = 0", "at least 1"),
        ("bandwidth = 0.01", "band = 0.01", "sd-kde"),
        ('"backward"', '"sideways"', "one of forward, backward"),
        ("[grid]", "class_weight = { a = 1.0 }\n[grid]", r"\[study\] class_weight.*a table of weights by class"),
        ("[grid]", "class_weight = { 0 = -1.0 }\n[grid]", r"\[study\] class_weight.*weights are finite numbers >= 0"),
        ("[grid]", "class_weight = 3\n[grid]", r"\[study\] class_weight.*must be a table of weights by class"),
        ("[grid]", "class_weight = {}\n[grid]", r"\[study\] class_weight.*must map classes to weights"),
        ("[full.study]", "[analysis]\nclass_weight = { 0 = 1.0 }\n[full.study]", r"put it under \[study\]"),
        ("[full.study]", '[analysis]\nlearning_rate = "top"\n[full.study]', "rate is 'top'; it must be"),
        ("[full.study]", "[analysis]\nlearning_rate = 0\n[full.study]", "learning rate is 0; it must be a positive"),
        ("[full.study]", "[analysis]\ntolerance = 3.0\n[full.study]", r"\[analysis\] tolerance is 3.0"),
        ("[full.study]", "[analysis]\nbatch_size = 3\n[full.study]", "no 'batch_size'"),
        ("[full.study]", '[analysis]\nmap = "full"\n[full.study]', "take 'auto' or 'hessian'"),
        ("[full.study]", '[analysis]\nmap = ["auto", "full"]\n[full.study]', r'or \["auto", "hessian"\] for both'),
        ("[full.study]", "[analysis]\nmap = true\n[full.study]", r"map is True; give one map, or"),
        ("[full.study]", "[analysis]\nmap = []\n[full.study]", r"map is \[\]; give one map, or"),
        ("[full.study]", "[trajectory]\nsteps = 5\n[full.study]", "at least 20 iterates"),
        ("[full.study]", "[trajectory]\nalpha = 0\n[full.study]", "alpha is 0"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(SdkerasError, match=said) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert str(caught.value).count("\n") == 0 or "TOML" in said
    assert "grid.toml" in str(caught.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SdkerasError, match="cannot be read"):
        read_study(str(tmp_path / "none.toml"))


def test_names_of_folders_hold_no_separators() -> None:
    settings = {"learning_rate": 0.1, "optimizer": "a/b c", "nesterov": True}
    assert run_name(settings) == "lr0.1-optimizera_b_c-nesterovtrue"
