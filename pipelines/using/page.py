"""The page of a search: for each query the images found, ranked, as small pictures.

Flows in: queries with their matches. Flows out: the text of an HTML page that needs no network and
no script. Equal inputs give equal bytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pipelines.reporting.page import environment
from pipelines.using.ranking import Query
from trainables.image_headers import BadImage, read_file
from trainables.images import decode

SIDE = 256  # longest side of a picture, pixels


def render(queries: Sequence[Query], images: int, folder: Path, model: str, source: str) -> str:
    """`images`: how many of `folder` were searched; `source`: the model's flags."""
    pictures = {m.path: picture(m.path) for query in queries for m in query.matches}
    many = f"{len(queries)} searches"
    context = {
        "headline": f"{f'“{queries[0].text}”' if len(queries) == 1 else many} in {images:,} images",
        **{"queries": queries, "pictures": pictures, "folder": folder},
        **{"model": model, "source": source},
    }
    return environment(escape=True).get_template("found.html.j2").render(context)


def picture(path: Path) -> str:
    """An image file as a small JPEG in a data URI, without the original's metadata; "" where it is
    no image any more."""
    try:
        pixels = decode(read_file(path))  # (3, H, W)
    except BadImage:
        return ""
    small = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
