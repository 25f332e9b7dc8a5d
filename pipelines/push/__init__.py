"""Putting an adapter where others find it, with a card that says what it is worth."""
