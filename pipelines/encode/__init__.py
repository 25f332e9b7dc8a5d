"""The work behind `cliptune encode`: Ray Data through the frozen towers into a store."""
