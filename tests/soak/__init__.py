"""Hours of faults, outside pytest: `python -m tests.soak --minutes 60`.

Commands are killed, their disks are full, and what they wrote is flipped and cut, at random and
again and again. After each round the result is the undisturbed one, or the damage was named: all
else is a fault of ours.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
