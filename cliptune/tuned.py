"""What was tuned, put to use: embeddings, classes, captions and search from Python.

Flows in: a run's folder, then images and words. Flows out: numpy arrays (one row an image or text,
of unit length) and pandas frames. The commands `search`, `classify` and `caption` compute the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from cliptune.values import PathLike, Words, flags_of, in_words, path_of, value_of
from trainables.config import Task
from trainables.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from cliptune.images import Images, OnError
    from pipelines.use.model import Model

    Embeddings: TypeAlias = npt.NDArray[np.float32]


TASKS: tuple[Task, ...] = ("retrieval", "classification", "captioning")


def load(
    run: PathLike | None = None, *, backbone: PathLike = "", revision: str | None = None
) -> Tuned:
    """The best adapter of `run`, a study or a training run, on its frozen CLIP; or what `cliptune
    push` put on the Hub as `user/name`, at the commit `revision` or as it is now. Instead of a run,
    `backbone` is a CLIP as it is: a folder, or a Hub id with its commit `revision`.

    Raises `DataError` where the run, its features or its backbone are gone or were altered.

    >>> tuned = cliptune.load("runs/mine")
    >>> tuned.name, tuned.task
    ('soft_prompt', 'retrieval')
    """
    from pipelines.runs.package import HUB_ID, fetched
    from pipelines.use.model import Source, open_model

    place = None if run is None else path_of("run", run)
    commit = value_of("revision", str | None, revision)
    with in_words():
        if place is not None and not place.exists() and HUB_ID.fullmatch(str(run)):
            with fetched(str(run), commit) as folder:
                return Tuned(None, open_model(Source(folder), *TASKS))
        source = Source(place, value_of("backbone", str, backbone), commit)
        model = open_model(source, *TASKS)
    return Tuned(source.run and source.run.absolute(), model)  # wherever one goes from here


@dataclass(frozen=True, eq=False)
class Tuned:
    """A trained adapter on its frozen CLIP.

    Images are paths of files, of folders (for the images in them) or of finished embeddings;
    pictures of Pillow's; or an array (N, e) of finished embeddings of the same CLIP. A frame names
    an image by its path, or by its number, from 0, where it came without one. An image that cannot
    be read is a `DataError`; with `on_error="skip"` a warning, and the others are answered.
    """

    run: Path | None
    model: Model = field(repr=False)

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

        from cliptune.images import Bad, as_paths, files
        from pipelines.use.embedding import embed_files
        from trainables.training.predict import embed_images

        adapter, bad = self.model.adapter, Bad()
        with as_paths(images, self._width, bad) as (paths, _):
            parts = [
                embed_images(adapter, data).cpu().numpy()
                for _, data in embed_files(adapter, files(paths, bad), bad, "embed")
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
        classes: Words = (),
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

        from cliptune.images import as_paths, bad_for, files
        from pipelines.classify.answers import calibration_of, choices, classify

        flags = flags_of(
            "classify",
            {"images": (), "classes": classes, "template": template, "top": top}
            | {"confidence": confidence, "sets": sets},
        )
        among, bad = choices(self.model, flags.classes, flags.template), bad_for(on_error)
        asked = (flags.confidence, flags.sets)
        calibration = calibration_of(self.model, not flags.classes, *asked)
        with as_paths(images, self._width, bad) as (paths, name):
            given = files(paths, bad)
            found = classify(self.model, given, among, flags.top, bad, calibration, *asked)
        word, more = "probability" if calibration else "softmax", ["set", "none"]
        rows = [
            {"image": name(row["path"]), "rank": rank, "class": one["name"], word: one[word]}
            | {key: row[key] for key in more if key in row}
            for row in found
            for rank, one in enumerate(row["classes"], 1)
        ]
        columns = ["image", "rank", "class", word, *more * (flags.confidence is not None)]
        return pd.DataFrame(rows, columns=columns)

    def caption(
        self, images: Images, *, seconds: float = 5.0, on_error: OnError = "raise"
    ) -> pd.DataFrame:
        """A caption for each image, of a file that is given twice once: `image` and `caption`; of
        clips one for each `seconds`, with `start` and `end`.

        >>> speaker = cliptune.load("runs/words")
        >>> list(speaker.caption("photos/0.jpg").columns)
        ['image', 'caption']
        """
        import pandas as pd

        from cliptune.images import as_paths, bad_for
        from pipelines.use.captions import caption_files

        self._check("captioning")
        flags = flags_of("caption", {"files": (), "run": self.run, "seconds": seconds})
        bad = bad_for(on_error)
        with as_paths(images, self._width, bad) as (paths, name):
            rows = caption_files(self.model, paths, flags.seconds, bad)
            if not rows and not bad.reasons:
                raise DataError(f"`images` holds no image or clip: `{paths[0]}`.")
        found = [{"image": name(row.pop("path"))} | row for row in rows]
        return pd.DataFrame(found, columns=None if found else ["image", "caption"])

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

        from cliptune.images import Noted, as_paths, bad_for
        from pipelines.search.nearest import nearest
        from pipelines.use.files import find
        from pipelines.use.given import is_given
        from pipelines.use.queries import embed_words

        self._check("retrieval")
        words, bad = _texts(queries, "queries"), bad_for(on_error)
        flags = flags_of("search", {"queries": words, "images": ".", "top": top})
        columns = ["query", "rank", "image", "cosine"]
        with as_paths(images, self._width, bad) as (paths, name):
            home = self.run / "index" if self.run and name is str else None
            asked = embed_words(self.model.adapter, words)
            if not (among := find(paths, bad)):
                if bad.reasons:
                    return pd.DataFrame(columns=columns)
                raise DataError(f"`images` holds no image: `{paths[0]}`.")
            if len(among) > 1 and (vectors := [path for path in among if is_given(path)]):
                raise ConfigError(
                    f"`images` must be images or one file of embeddings, got `{vectors[0]}` among "
                    f"{len(among):,} files."
                )
            found = nearest(self.model, among, words, asked, flags.top, home, Noted())
            for path, reason in (found.index.bad if found.index else {}).items():
                bad.add(path, reason)
        rows = [
            {"query": query.text, "rank": rank, "image": name(match.path), "cosine": match.cosine}
            for query in found.queries
            for rank, match in enumerate(query.matches, 1)
        ]
        return pd.DataFrame(rows, columns=columns)

    @property
    def _width(self) -> int:
        return self.model.backbone.embed_dim

    def _check(self, task: Task) -> None:
        from pipelines.use.model import check_task

        check_task(self.run or Path(self.name), self.task, (task,))


def _texts(given: Words, name: str) -> tuple[str, ...]:
    texts: tuple[str, ...] = value_of(name, tuple[str, ...], given)
    if not texts or not all(one.strip() for one in texts):
        raise ConfigError(f"`{name}` must be texts with words in them, got {list(texts)!r:.80}.")
    return texts
