"""Every check of cliptune: `tests/<package>/<room>/` tests that room; what all share lies here."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
