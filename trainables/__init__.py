"""What is trained, on what batch, with what loss. Only `trial.py` imports Ray."""
