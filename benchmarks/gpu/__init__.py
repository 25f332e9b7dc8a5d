"""What only a card can tell, in one script of minutes: `python -m benchmarks.gpu`."""
