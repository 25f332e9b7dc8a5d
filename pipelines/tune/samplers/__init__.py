"""Where the next trial looks: which adapter it is of, and with which values."""
