"""`gda`: alpha is chosen within a trial, which is one."""

from __future__ import annotations

from search_spaces.common import ALONE, Spaces

SPACES: Spaces = {"classification": ALONE}
