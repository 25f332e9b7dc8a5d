"""Which trials stop early, or go on from another's weights."""
