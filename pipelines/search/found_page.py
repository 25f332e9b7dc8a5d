"""The page of a search: for each query the images found, ranked, as small pictures.

Flows in: queries with their matches. Flows out: the text of an HTML page that needs no network and
no script. Equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.evaluate.gallery import thumbnail
from pipelines.pages.layout import environment
from pipelines.search.ranking import Query
from trainables.media.image_headers import BadImage, read_file

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
    """An image file's thumbnail; "" where it is no image any more."""
    try:
        return thumbnail(read_file(path), SIDE)
    except BadImage:
        return ""
