"""`sdkeras track`: the log of a folder or a file, in the terminal and as a page."""

import subprocess
import sys
from pathlib import Path

from sample_log import FOUND, HEADER
from sdkeras.reporting.run_log import FILE_NAME, append


def test_the_command(in_process, tmp_path: Path) -> None:
    append(tmp_path / FILE_NAME, HEADER)
    append(tmp_path / FILE_NAME, FOUND)
    status, out, err = in_process("track", tmp_path)
    assert (status, err) == (0, "")
    assert "Below the edge of stability at step 10" in out
    page = tmp_path / "page.html"
    assert in_process("track", tmp_path / FILE_NAME, "--html", page) == (0, "", "")
    assert page.read_text().startswith("<!doctype html>")
    status, out, err = in_process("track", tmp_path / "nowhere")
    assert (status, out) == (2, "")
    assert err.startswith("sdkeras: error: ")
    assert err.count("\n") == 1
    status, _, err = in_process("track", tmp_path, "--html", tmp_path / FILE_NAME)
    assert status == 2
    assert "would be overwritten" in err


def test_no_tensorflow_is_loaded_until_the_callback_is_named(tmp_path: Path) -> None:
    append(tmp_path / FILE_NAME, HEADER)
    append(tmp_path / FILE_NAME, FOUND)
    code = (
        "import sys\n"
        "import sdkeras\n"
        "from sdkeras_cli.main import main\n"
        "try:\n"
        f"    main(['track', {str(tmp_path)!r}, '--html', {str(tmp_path / 'page.html')!r}])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
        "assert sdkeras.callbacks.SharpnessDimension\n"
        "assert 'keras' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "page.html").exists()
