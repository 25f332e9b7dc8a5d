"""The work behind `cliptune evaluate`: who is measured, and how, on the sealed split."""
