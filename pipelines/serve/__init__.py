"""The work behind `cliptune serve`: adapters on one frozen model, answering over HTTP."""
