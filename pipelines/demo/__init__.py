"""The embedded demo, without a network: drawn scenes, their captions, a tiny CLIP trained on them.

`cliptune demo` runs all stages on them: draw, shards, encode, tune, evaluate, report.
"""

from pipelines.demo.__main__ import Args, run

__all__ = ["Args", "run"]
