"""A table in another encoding than UTF-8 is refused with the line that converts it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipelines.shards import __main__ as shards
from pipelines.sources.base import Options
from pipelines.sources.registry import SOURCES, source_format
from tests.pictures import draw
from trainables.errors import DataError

SAID = ["un café \u201enoir\u201c", "das M\xe4dchen", "plain"]
ROWS = [{"image": f"{n}.jpg", "caption": caption} for n, caption in enumerate(SAID)]
COCO = {
    "annotations": [{"image_id": n, "caption": row["caption"]} for n, row in enumerate(ROWS)],
    "images": [{"id": n, "file_name": row["image"]} for n, row in enumerate(ROWS)],
}
TEXTS = {
    "said.csv": "image,caption\n" + "".join(f"{r['image']},{r['caption']}\n" for r in ROWS),
    "said.tsv": "image\tcaption\n" + "".join(f"{r['image']}\t{r['caption']}\n" for r in ROWS),
    "captions.txt": "image,caption\n" + "".join(f"{r['image']},{r['caption']}\n" for r in ROWS),
    "said.json": json.dumps(ROWS, ensure_ascii=False),
    "coco.json": json.dumps(COCO, ensure_ascii=False),
    "said.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "x.token.txt": "".join(f"{r['image']}#0\t{r['caption']}\n" for r in ROWS),
}
WIDE = ("utf-16-le", "utf-16-be", "utf-32")


@pytest.mark.skipif(shutil.which("iconv") is None, reason="no iconv here")
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16", *WIDE])
def test_the_line_to_type_makes_it_utf8(tmp_path: Path, name: str, encoding: str) -> None:
    if encoding in ("utf-16", *WIDE) and name in ("captions.txt", "x.token.txt"):
        pytest.skip("of no clear format")
    folder = tmp_path / "it's here"
    draw(folder, "0.jpg", "1.jpg", "2.jpg")
    source, text = folder / name, TEXTS[name]
    if encoding == "latin-1":
        text = text.translate({0x201E: "\x84", 0x201C: "\x90"})
    source.write_bytes(text.encode(encoding))
    if encoding == "utf-16" and name in ("said.csv", "said.tsv"):  # as Excel saves it
        read = SOURCES["table"](str(source), Options())
        assert [one.captions for one in read] == [(caption,) for caption in SAID]
        return
    with pytest.raises(DataError, match="not UTF-8") as caught:
        shards.run(shards.Args(str(source), tmp_path / "out", split="train"))
    (line,) = re.findall(r"not UTF-8 \(`(iconv -f .*?)` converts it", str(caught.value))
    assert " -f WINDOWS-1252 " in line or encoding != "cp1252"
    subprocess.run(line, shell=True, check=True)
    (converted,) = folder.glob("*utf8*")
    kind = source_format(str(converted), "flickr_token" if "token" in name else None)
    found = [one.captions[0] for one in SOURCES[kind](str(converted), Options())]
    said = [one.decode() if isinstance(one, bytes) else one for one in found]
    right = SAID if encoding != "latin-1" else ["un café \x84noir\x90", *SAID[1:]]
    assert said == right


def test_a_picture_whose_words_are_ascii_is_read_beside_others(tmp_path: Path) -> None:
    draw(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    (tmp_path / "said.csv").write_bytes(TEXTS["said.csv"].encode("cp1252"))
    source = str(tmp_path / "said.csv")
    shards.run(shards.Args(source, tmp_path / "out", split="train", max_bad_fraction=0.7))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["quarantined"] == {"not UTF-8": 2}
    assert manifest["splits"] == {"train": {"images": 1, "captions": 1}}
