"""A trained model in both formats."""

import warnings

import pytest

from file_checks import X, Y, tiny


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A model with optimizer slots, saved in both formats."""
    folder = tmp_path_factory.mktemp("models")
    model = tiny()
    model.fit(X, Y, epochs=2, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(folder / "net.keras")
        model.save(folder / "net.h5")  # after net.keras: saving as .h5 takes the optimizer out of the model's config
    return model, folder
