"""Commands in a process of their own."""

import subprocess
import sys

# Each of the command lines given, in one process that must not load TensorFlow.
WITHOUT_TENSORFLOW = """
import shlex, sys
from sdkeras_cli.main import main
status = int(sys.argv[1])
for line in sys.argv[2:]:
    try:
        main(shlex.split(line))
    except SystemExit as end:
        assert (end.code or 0) == status, line
assert not {'tensorflow', 'keras', 'matplotlib.pyplot'} & set(sys.modules)
"""


def python(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Python code with arguments; without code the command line."""
    code = code or "from sdkeras_cli.main import main; main()"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "check": False} | options
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], **streams)
