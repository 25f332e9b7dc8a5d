"""The work behind `cliptune caption`."""
