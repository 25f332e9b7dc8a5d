"""Hours of faults, outside the tests: `python -m tests.soak --minutes 60`.

Commands are killed, and what they wrote is flipped and cut, at random and again and again. After
each round the result is the undisturbed one, or the damage was named: all else is a fault of ours.
"""
