"""What was tuned, put to use: embeddings, classes, captions and search from Python.

Flows in: a run's folder, then images and words. Flows out: numpy arrays (one row an image or text,
of unit length) and pandas frames. The commands `search`, `classify` and `caption` compute the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from cliptune.values import PathLike, Words
from trainables.config import Task
from trainables.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from cliptune.images import Images, OnError
    from pipelines.use.model import Model

    Embeddings: TypeAlias = npt.NDArray[np.float32]


def load(
    run: PathLike | None = None, *, backbone: PathLike = "", revision: str | None = None
) -> Tuned:
    """The best adapter of `run`, a study or a training run, on its frozen CLIP. Instead of a run,
    `backbone` is a CLIP as it is: a folder, or a Hub id with its commit `revision`.

    Raises `DataError` where the run, its features or its backbone are gone or were altered.

    >>> tuned = cliptune.load("runs/mine")
    >>> tuned.name, tuned.task
    ('soft_prompt', 'retrieval')
    """
    from pipelines.use.model import Source, open_model

    source = Source(None if run is None else Path(run), str(backbone), revision)
    return Tuned(source.run, open_model(source, "retrieval", "classification", "captioning"))


@dataclass(frozen=True, eq=False)
class Tuned:
    """A trained adapter on its frozen CLIP.

    Images are paths of files, of folders (for the images in them) or of finished embeddings;
    pictures of Pillow's; or an array (N, e) of finished embeddings of the same CLIP. A frame names
    an image by its path, or by its number, from 0, where it came without one. An image that cannot
    be read is a `DataError`; with `on_error="skip"` a warning, and the others are answered.
    """

    run: Path | None
    model: Model

    @property
    def name(self) -> str:
        """The adapter's."""
        return self.model.name

    @property
    def task(self) -> Task:
        """`retrieval`, `classification` or `captioning`: what it was trained for."""
        return self.model.adapter.train_config.task

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that it was trained on; none, where it was on captions."""
        return self.model.classes.names if self.model.classes else ()

    def embed_images(self, images: Images) -> Embeddings:
        """Images in the joint space as the adapter has them: (N, e), in the given order.

        >>> tuned = cliptune.load("runs/mine")
        >>> tuned.embed_images(["photos/0.jpg", "photos/1.jpg"]).shape
        (2, 16)
        """
        import numpy as np

        from cliptune.images import Strict, as_paths, files
        from pipelines.use.embedding import embed_files
        from trainables.training.predict import embed_images

        adapter = self.model.adapter
        with as_paths(images) as (paths, _):
            parts = [
                embed_images(adapter, data).cpu().numpy()
                for _, data in embed_files(adapter, files(paths, Strict()), Strict(), "embed")
            ]
        return np.concatenate(parts)

    def embed_text(self, texts: Words) -> Embeddings:
        """Texts in the joint space as the adapter has them: (M, e).

        >>> tuned = cliptune.load("runs/mine")
        >>> words = tuned.embed_text(["a red thing", "a blue thing"])
        >>> similarities = tuned.embed_images("photos/0.jpg") @ words.T
        >>> similarities.shape
        (1, 2)
        """
        from pipelines.use.queries import embed_words

        return embed_words(self.model.adapter, _texts(texts, "texts")).numpy()

    def classify(
        self,
        images: Images,
        *,
        classes: Sequence[str] = (),
        template: str = "",
        top: int = 3,
        confidence: float | None = None,
        sets: Literal["split", "adaptive", "class-wise"] = "split",
        on_error: OnError = "raise",
    ) -> pd.DataFrame:
        """The `top` likeliest classes of each image: `image`, `rank`, `class` and `probability`, or
        `softmax` where no val calibrated it. `classes` are others than its own, for adapters that
        can name them.

        With a `confidence` such as 0.9, `set` is the image's conformal set, which holds the right
        class for at least that share of images like val's, and `none` says why it is none of them.

        >>> few = cliptune.load("runs/few")
        >>> few.classify("photos/0.jpg", top=2)["rank"].tolist()
        [1, 2]
        """
        import pandas as pd

        from cliptune.images import as_paths, faults_for, files
        from pipelines.classify.answers import calibration_of, choices, classify

        among, faults = choices(self.model, classes, template), faults_for(on_error)
        how = (calibration_of(self.model, not classes, confidence, sets), confidence, sets)
        with as_paths(images) as (paths, name):
            found = classify(self.model, files(paths, faults), among, top, faults, *how)
        rows = [
            {"image": name(row["path"]), "rank": rank, "class": one.pop("name")}
            | one  # its probability, or softmax
            | {key: row[key] for key in ("set", "none") if key in row}
            for row in found
            for rank, one in enumerate(row["classes"], 1)
        ]
        return pd.DataFrame(rows)

    def caption(
        self, images: Images, *, seconds: float = 5.0, on_error: OnError = "raise"
    ) -> pd.DataFrame:
        """A caption for each image: `image` and `caption`; of clips one for each `seconds`, with
        `start` and `end`.

        >>> speaker = cliptune.load("runs/words")
        >>> list(speaker.caption("photos/0.jpg").columns)
        ['image', 'caption']
        """
        import pandas as pd

        from cliptune.images import as_paths, faults_for
        from pipelines.use.captions import caption_files

        self._check("captioning")
        with as_paths(images) as (paths, name):
            rows = caption_files(self.model, paths, seconds, faults_for(on_error))
        return pd.DataFrame([{"image": name(row.pop("path"))} | row for row in rows])

    def search(
        self, queries: Words, images: Images, *, top: int = 12, on_error: OnError = "raise"
    ) -> pd.DataFrame:
        """The `top` images nearest to each query: `query`, `rank`, `image` and `cosine`. Files are
        embedded once for a run: their index is kept in its folder.

        >>> tuned = cliptune.load("runs/mine")
        >>> tuned.search("a red thing", images="photos", top=2)["rank"].tolist()
        [1, 2]
        """
        import pandas as pd

        from cliptune.images import as_paths, faults_for
        from pipelines.search.nearest import nearest
        from pipelines.use.files import find
        from pipelines.use.queries import embed_words

        self._check("retrieval")
        words, faults = _texts(queries, "queries"), faults_for(on_error)
        with as_paths(images) as (paths, name):
            home = self.run / "index" if self.run and name is str else None
            asked = embed_words(self.model.adapter, words)
            if not (among := find(paths, faults)):
                raise DataError(f"`images` holds no image: `{paths[0]}`.")
            found = nearest(self.model, among, words, asked, top, home)
        for path, reason in (found.index.bad if found.index else {}).items():
            faults.add(path, reason)
        rows = [
            {"query": query.text, "rank": rank, "image": name(match.path), "cosine": match.cosine}
            for query in found.queries
            for rank, match in enumerate(query.matches, 1)
        ]
        return pd.DataFrame(rows)

    def _check(self, task: Task) -> None:
        from pipelines.use.model import check_task

        check_task(self.run or Path(self.name), self.task, (task,))


def _texts(given: Words, name: str) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    if not texts or not all(isinstance(one, str) and one.strip() for one in texts):
        raise ConfigError(f"`{name}` must be texts with words in them, got {given!r:.80}.")
    return texts
