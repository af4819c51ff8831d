"""A caveat: what the reader of a number must know."""

from __future__ import annotations

import attrs


@attrs.frozen
class Note:
    """Something the reader must know, with its numbers."""

    code: str  # stable identifier, for example 'ill-conditioned'
    message: str  # one sentence or two
