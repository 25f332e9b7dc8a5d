"""What a search may be led by, as its flags name it; light, so that `--help` is quick."""

from typing import Literal

Sampler = Literal["auto", "tpe", "gp", "random", "cmaes", "qmc"]
Scheduler = Literal["asha", "hyperband", "median", "none", "pbt", "pb2"]
