"""Names of trackers, checked before any work starts and without importing their libraries."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence

from sdkeras.errors import SdkerasError, did_you_mean
from sdkeras.files.atomic import refuse_url

TENSORBOARD = "tensorboard"
# The adapter of each tracker. Its library and the extra that installs it are called as the tracker is.
ADAPTERS = {
    TENSORBOARD: "sdkeras.reporting.trackers.to_tensorboard",
    "wandb": "sdkeras.reporting.trackers.to_wandb",
    "mlflow": "sdkeras.reporting.trackers.to_mlflow",
}


def check_trackers(report_to: str | Sequence[str] | None) -> tuple[str, ...]:
    """The trackers, each once: 'tensorboard', 'tensorboard:DIR', 'wandb' or 'mlflow'.

    Raises:
        SdkerasError: An unknown tracker, one whose library is not installed, or no folder after 'tensorboard:'
            of this machine.
    """
    names = (report_to,) if isinstance(report_to, str) else report_to or ()
    if not isinstance(names, Iterable) or not all(isinstance(each, str) for each in names):
        raise SdkerasError(f"`report_to` is {report_to!r}; it must be names of trackers: {', '.join(ADAPTERS)}.")
    for each in names:
        name, colon, folder = each.partition(":")
        if name not in ADAPTERS:
            hint = did_you_mean(name, ADAPTERS)
            raise SdkerasError(f"`report_to`: there is no tracker {name!r}; {hint}there are: {', '.join(ADAPTERS)}.")
        if colon and not (name == TENSORBOARD and folder):
            raise SdkerasError(
                f"`report_to`: {each!r} is not a tracker; only tensorboard:DIR takes a folder. The others go where "
                "their environment variables say (MLFLOW_TRACKING_URI, WANDB_PROJECT)."
            )
        refuse_url(folder, "`report_to`: ")
    for name in (each.partition(":")[0] for each in names):
        if not _is_installed(name):
            raise SdkerasError(f"`report_to`: {name} is not installed; pip install 'sdkeras[{name}]'.")
    return tuple(dict.fromkeys(names))


def _is_installed(library: str) -> bool:
    """Whether there is such a library; a mere folder of its name (wandb makes one where it runs) is none."""
    spec = importlib.util.find_spec(library)
    return spec is not None and spec.origin is not None
