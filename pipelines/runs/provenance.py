"""Where a number was made: the data, the versions and the machine, so that it can be made again.

Flows in: shards and features. Flows out: JSON-ready facts.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainables.data.shards import ShardSet
    from trainables.features.split import SplitFeatures

PACKAGES = ("cliptune", "torch", "transformers", "peft", "ray", "optuna", "numpy", "simplejpeg")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str | int | float | None]:
    import torch

    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "ram_gib": round(pages / 2**30, 1),
    }


def about(shards: ShardSet, whole: SplitFeatures, data: SplitFeatures) -> dict[str, Any]:
    """The facts of the measured rows, `data`, and of the whole test split, `whole`."""
    return {
        "shards": str(shards.folder),
        "digest": shards.digest,
        "split": "test",
        "images": len(data.groups),
        "captions": len(data.caption_rows),
        "quarantined": shards.manifest["quarantined"],
        "notes": shards.manifest["notes"],
        "duplicated_image_rows": duplicates(whole),
        "truncated_captions": data.truncated,
    }


def duplicates(whole: SplitFeatures) -> dict[str, Any]:
    """The lint: rows that repeat an earlier row's image, and groups of ids that are equal."""
    _, numbers, counts = whole.groups.unique(return_inverse=True, return_counts=True)
    repeated = (counts > 1).nonzero().flatten()  # (groups,)
    examples = [
        [whole.ids[row] for row in (numbers == group).nonzero().flatten().tolist()]
        for group in repeated[:5]
    ]
    rows, warning = len(numbers) - len(counts), None
    if rows and whole.labels is None:
        warning = (
            f"{rows:,} of {len(numbers):,} image rows repeat an earlier row's bytes. Here they are "
            f"{len(counts):,} images, each with the captions of all its rows: counted row by row, "
            "copies of one wrong image would fill the first places."
        )
    return {"rows": rows, "groups": examples, "warning": warning}
