"""Which values are worth trying: pure data, one file per adapter."""
