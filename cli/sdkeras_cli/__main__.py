"""Start of the `sdkeras` command, before anything is imported that takes time; also `python -m sdkeras_cli`."""

from __future__ import annotations

from typing import NoReturn

from sdkeras_cli import interrupts


def main() -> NoReturn:
    """Takes over Ctrl-C, then runs the command line."""
    interrupts.install()
    from sdkeras_cli.main import main as run

    run()


if __name__ == "__main__":
    main()
