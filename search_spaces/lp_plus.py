"""`lp_plus`: nothing is chosen, so one trial is all."""

from __future__ import annotations

from search_spaces.common import ALONE, Spaces

SPACES: Spaces = {"classification": ALONE}
