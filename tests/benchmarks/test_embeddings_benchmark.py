"""What the page says of the memory of finished embeddings."""

from __future__ import annotations

from pathlib import Path

from benchmarks import embeddings
from benchmarks.embeddings import Run
from trainables.files import write_json


def test_the_page_has_the_slope_and_what_it_leads_to(tmp_path: Path) -> None:
    assert embeddings.section(tmp_path) == []
    runs = [Run(1_000_000, 520.0, 9.0), Run(2_000_000, 540.0, 18.0)]
    write_json(tmp_path / embeddings.FILE, [vars(run) for run in runs])
    text = "\n".join(embeddings.section(tmp_path))
    assert "takes 21.0 bytes. At 10,000,000 rows that makes 700 MiB." in text
    assert "| 2,000,000 | 1,953 | 540 | 18 |" in text
