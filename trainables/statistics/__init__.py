"""How sure a number is: intervals, comparisons, and what chance alone gives."""
