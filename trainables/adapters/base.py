"""The adapter contract: what the one training loop knows of every method.

Flows in: a frozen backbone and the method's own config. Flows out: a loss for the loop, embeddings
for the metrics, and a checkpoint that is exactly the trainable parameters plus `config.json`.

In the examples of all adapters, `backbone` is a loaded CLIP, `train` the features of labelled
images and `pairs` those of captioned ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import Task, TrainConfig, Value
from trainables.data.batches import Batch, Predictions, Tokens
from trainables.hardware import full
from trainables.losses.losses import Objective
from trainables.models.backbone import Backbone
from trainables.models.text_plan import Prompt
from trainables.models.text_tower import embed_text

if TYPE_CHECKING:
    from trainables.features.classes import Classes
    from trainables.features.split import SplitFeatures
    from trainables.metrics.calibration import Calibration

C = TypeVar("C")
# A batch's `image_embeds` (B, e) and `hidden` to similarities (B, C).
Classifier: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]


# From what any store of embeddings has to what only pixels give.
Needs: TypeAlias = Literal["embeddings", "the text tower", "both towers"]


def product(one: Tensor, other: Tensor) -> Tensor:
    """`one @ other` in fp32, whatever a step's precision is."""
    with full(one.device):
        return one.float() @ other.float()


class Adapter(nn.Module, Generic[C]):
    """One way to adapt a frozen CLIP.

    Trainable are the parameters with `requires_grad`. The backbone is shared by all adapters of a
    process, is not a submodule, and is never changed.
    """

    Config: ClassVar[type[Any]]
    # For each task that the method is for: the published settings, dotted.
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]]
    # Further published settings, over the recipe's, of fields that are searched: a search starts
    # from them too.
    VARIANTS: ClassVar[Mapping[Task, Sequence[Mapping[str, Value]]]] = {}
    NEEDS: ClassVar[Needs] = "embeddings"  # what of the frozen CLIP it goes through
    FUSES: ClassVar[bool] = True  # whether several may be trained as one (`stacked.py`)

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__()
        self.train_config = config
        self.config: C = config.adapter
        self.objective = Objective(config.loss, config.temperature, backbone)
        self.classes: Classes | None = None  # those that it is or was trained on
        self.calibration: Calibration | None = None  # what val said of its scores of them
        # A list hides the frozen backbone from `parameters()` and `state_dict()`.
        self._frozen = [backbone]

    @classmethod
    def needs(cls, config: TrainConfig) -> Needs:
        """The part of the frozen CLIP that an adapter of this configuration runs through: by
        default `NEEDS`."""
        del config
        return cls.NEEDS

    @property
    def backbone(self) -> Backbone:
        return self._frozen[0]

    @property
    def tau(self) -> float:
        """What similarities are multiplied by, when training is over."""
        return float(self.objective.scale(torch.tensor(1.0)).detach())

    @property
    def notes(self) -> list[str]:
        """Sentences for whoever trains this adapter."""
        return []

    @property
    def beside(self) -> dict[str, Any]:
        """Other frozen models that it works with, by their role: name, revision, fingerprint."""
        return {}

    @property
    def open_classes(self) -> bool:
        """Whether the adapter also scores classes that it was not trained on."""
        return True

    @property
    def image_block(self) -> int | None:
        """The first block of the image tower that the method changes; the blocks below it are
        computed once for all trials. None: the method leaves the tower alone and is given its
        outputs."""
        return None

    @property
    def frozen_text(self) -> bool:
        """Whether the method is given the frozen text tower's outputs, instead of the words or
        beside them."""
        return False

    @property
    def class_words(self) -> str:
        """What stands around a class name in `tokens`; "": the data set's own template."""
        return ""

    @property
    def frozen_words(self) -> str:
        """The same for `text_embeds`; several templates, separated by `|`, make an ensemble."""
        return ""

    @property
    def added_tokens(self) -> int:
        """Positions that the method takes from every caption: long ones are cut by as many."""
        return 0

    @property
    def prompt(self) -> Prompt | None:
        """The vectors that the text tower reads among the words of every caption: learned, of the
        text tower's width. None: the method has none."""
        return None

    @property
    def moves_prompt(self) -> bool:
        """Whether every image has a prompt of its own, made of `prompt`."""
        return False

    def set_prompt(self, vectors: Tensor) -> None:
        """Let the text tower read `vectors` in the place of the learned ones; M may differ, and may
        be 0."""
        raise NotImplementedError(f"{type(self).__name__} has no prompt vectors.")

    def embed_text(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Tensor:
        """Captions to the joint space, not normalised: (M, e); by default by the frozen tower, with
        the `prompt` if there is one. `text_embeds` (M, e) are the frozen tower's outputs without
        it, given where `frozen_text` is true."""
        prompt = self.prompt
        if prompt is None and text_embeds is not None:
            return text_embeds
        return embed_text(self.backbone, tokens, prompt)

    def embed_images(self, image_embeds: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Images to the joint space, not normalised: (B, e). By default the frozen tower's."""
        del hidden
        return image_embeds

    def class_texts(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Tensor:
        """The texts that images are compared with: (C, e), of unit length. The frozen tower's are
        taken as they are given: an ensemble's are shorter."""
        texts = self.embed_text(tokens, text_embeds)
        return texts.float() if texts is text_embeds else F.normalize(texts.float(), dim=-1)

    def classifier(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Classifier:
        """A function from images to their scores among C classes, by default the cosine
        similarities with texts that are embedded once. The objective multiplies the scores by
        tau."""
        texts = self.class_texts(tokens, text_embeds)

        def similarity(image_embeds: Tensor, hidden: Tensor | None) -> Tensor:
            images = F.normalize(self.embed_images(image_embeds, hidden).float(), dim=-1)
            return product(images, texts.T)

        return similarity

    def captions(self, image_embeds: Tensor, frames: Tensor | None = None) -> list[str]:
        """A caption for each of B images (B, e), or of B clips with F frames (B, F, e)."""
        raise NotImplementedError(f"{type(self).__name__} speaks no captions.")

    def words(self, data: SplitFeatures) -> Tokens:
        """The captions of `data` in the tokens that a captioner learns, each with its end: M. By
        default CLIP's own."""
        return data.tokens

    def truncated(self, data: SplitFeatures) -> int:
        """How many captions of `data` are cut, as they do not fit beside the tokens that the method
        adds."""
        room = self.backbone.context_length - self.added_tokens
        return max(int((data.tokens.lengths > room).sum()), data.truncated)

    def prepare(self, train: SplitFeatures) -> None:
        """Take from the training data what the method needs before its first step."""

    def end_epoch(self, epoch: int, val: SplitFeatures | None) -> Tensor | None:
        """Called when epoch `epoch` (from 1) is trained, before it is measured on `val`: choose
        there what needs no training. Without `val`, nothing may be chosen on the images that
        measure it. Where something was chosen on `val`, the result is the similarities (N, C) to
        measure, those of each image by what the other images chose."""
        del epoch, val
        return None

    @property
    def without_val(self) -> str:
        """For whoever trains this: how the values that `end_epoch` chooses on val are set without
        it. Empty: `end_epoch` chooses none."""
        return ""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and numbers worth logging: the objective of the task."""
        if self.train_config.task == "classification":
            return self.objective.classify(
                self.classifier(batch.tokens, batch.text_embeds)(batch.image_embeds, batch.hidden),
                batch.image_groups,
                batch.progress,
            )
        loss: tuple[Tensor, dict[str, Tensor]] = self.objective(
            self.embed_images(batch.image_embeds, batch.hidden),
            self.embed_text(batch.tokens, batch.text_embeds),
            batch.image_groups,
            batch.caption_groups,
            batch.progress,
        )
        return loss

    def predict(self, batch: Batch) -> Predictions:
        """The batch's images and captions as the adapter embeds them, L2-normalised."""
        images = self.embed_images(batch.image_embeds, batch.hidden)
        texts = self.embed_text(batch.tokens, batch.text_embeds)
        return Predictions(F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, under the name that `functional_call` wraps."""
        return self.loss(batch)

    def turned(
        self, start: Mapping[str, Tensor], learned: Mapping[str, Tensor], share: float
    ) -> dict[str, Tensor]:
        """The checkpoint's tensors, with what was learned counting by `share`. By default the
        weights lie on the line from the start of training (0) through its end (1), as in WiSE-FT
        (Wortsman et al. 2022, arXiv:2109.01903). Labels and flags are not interpolated."""
        return {
            name: torch.lerp(start[name], tensor, share) if tensor.is_floating_point() else tensor
            for name, tensor in learned.items()
        }

    def export(self, folder: Path) -> list[Path]:
        """Write the adapter in the formats of other libraries, where there is one."""
        del folder
        return []

    def loading(self, folder: Path) -> str:
        """The expression that loads what `export` wrote to `folder`."""
        raise NotImplementedError(f"{type(self).__name__} has no format of another library.")
