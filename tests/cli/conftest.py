"""What the tests of several commands share."""

import pytest
from click.testing import CliRunner

from sdkeras_cli import main as cli_main
from sdkeras_cli import request


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch):
    """The command in this process, where TensorFlow runs already and its threads are set."""
    monkeypatch.setattr(request, "tensorflow_settings", lambda: None)

    def run(*arguments: object) -> tuple[int, str, str]:
        with CliRunner().isolation() as (out, err, _):
            with pytest.raises(SystemExit) as caught:
                cli_main.main([str(argument) for argument in arguments])
            return int(caught.value.code or 0), out.getvalue().decode(), err.getvalue().decode()

    return run
