"""A backbone of KerasHub is analysed as any other model: its products are right and reach all of its weights."""

import numpy as np
import pytest

import sdkeras
from example_scripts import load_script

pytestmark = pytest.mark.slow


def test_a_backbone_of_keras_hub_is_analysed() -> None:
    pytest.importorskip("keras_hub", reason="pip install keras-hub; it brings tensorflow-text")
    script = load_script("keras_hub_backbone")
    model, (inputs, labels) = script.classifier(), script.sequences(32)
    loss = sdkeras.EmpiricalLoss(model, (inputs, labels), batch_size=32)
    hessian = sdkeras.HessianOperator(loss)
    assert hessian.verification.passed
    assert hessian.size == model.count_params()
    product = hessian.matvec(np.random.default_rng(0).standard_normal(hessian.size).astype("float32"))
    assert np.linalg.norm(product) > 0
    changed = {**inputs, "token_ids": np.where(inputs["padding_mask"] > 0, inputs["token_ids"], 5)}
    np.testing.assert_allclose(model(changed), model(inputs), atol=1e-6)  # padding is masked
    np.testing.assert_array_equal(labels, [(row == 1).sum() > (row == 2).sum() for row in inputs["token_ids"]])
