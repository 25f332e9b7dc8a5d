"""`python -m cliptune <stage>`: the console command."""

from pipelines.cli import main

main()
