"""`python -m pipelines.demo`."""

from pipelines.cli import stage_main

stage_main("demo")
