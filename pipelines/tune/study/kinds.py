"""The names of samplers and schedulers, as the flags have them; light, so that `--help` is
quick."""

from typing import Literal

Sampler = Literal["auto", "tpe", "gp", "random", "cmaes", "qmc"]
Scheduler = Literal["asha", "hyperband", "median", "none", "pbt", "pb2"]
