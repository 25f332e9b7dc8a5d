"""Where the next trial looks: its adapter, and its values."""
