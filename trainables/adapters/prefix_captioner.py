"""`prefix_captioner`: an image embedding becomes a prefix that a language model goes on from.

Flows in: image embeddings (B, e), or those of a clip's frames (B, F, e). Flows out: B captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.adapters.base import Adapter
from trainables.config import Task, TrainConfig, Value, check
from trainables.data.batches import Batch, Tokens
from trainables.data.transfer import send
from trainables.distributed import gather
from trainables.errors import ConfigError
from trainables.features.split import SplitFeatures
from trainables.files import write_bytes, write_json
from trainables.hardware import resolved
from trainables.models.backbone import Backbone
from trainables.models.decoding import Decoding, decode
from trainables.models.language_model import LanguageModel, language_model
from trainables.models.mappers import MlpMapper, TemporalPool, TransformerMapper


@dataclass(frozen=True)
class PrefixCaptionerConfig:
    """ClipCap's choices, and how the words are chosen once it is trained.

    `paper` keeps three habits of ClipCap's public code, for a faithful comparison: token 0 is never
    learned (it stood for padding), no end token is trained, and a caption ends at its full stop.

    >>> PrefixCaptionerConfig(mapper="transformer", lm_mode="frozen").decoding
    'beam'
    """

    mapper: Literal["mlp", "transformer"] = "mlp"
    prefix_length: int = 10  # k, vectors that the language model reads
    clip_length: int = 10  # transformer: c, tokens made of the embedding
    layers: int = 8  # transformer
    heads: int = 8  # transformer
    lm: str = "tiny"  # a folder, or a Hub id with its commit
    lm_revision: str | None = None
    lm_mode: Literal["frozen", "lora", "full"] = "full"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.1
    normalize: bool = True  # image embeddings to unit length, as retrieval sees them
    pooling: Literal["mean", "attention"] = "mean"  # of a clip's frames
    paper: bool = False
    decoding: Literal["greedy", "nucleus", "beam"] = "beam"
    beams: int = 5
    length_penalty: float = 1.0  # beam: the power of the length that a score is divided by
    top_p: float = 0.9  # nucleus
    sampling_temperature: float = 1.0  # nucleus: divides the logits
    max_tokens: int = 67
    no_repeat_ngram: int = 0  # no sequence of so many tokens occurs twice; 0: it may

    def __post_init__(self) -> None:
        for name in ("prefix_length", "clip_length", "layers", "heads", "lora_rank", "beams"):
            check(getattr(self, name) >= 1, f"adapter.{name}", "at least 1", getattr(self, name))
        check(self.lora_alpha > 0, "adapter.lora_alpha", "above 0", self.lora_alpha)
        check(0 <= self.lora_dropout < 1, "adapter.lora_dropout", "in [0, 1)", self.lora_dropout)
        check(0 < self.top_p <= 1, "adapter.top_p", "in (0, 1]", self.top_p)
        temperature = self.sampling_temperature
        check(temperature > 0, "adapter.sampling_temperature", "above 0", temperature)
        check(self.max_tokens >= 1, "adapter.max_tokens", "at least 1", self.max_tokens)
        check(
            self.no_repeat_ngram >= 0, "adapter.no_repeat_ngram", "at least 0", self.no_repeat_ngram
        )
        free = self.lm != "tiny" or self.lm_revision is None
        check(free, "adapter.lm_revision", "left out for `tiny`", self.lm_revision)
        # Whoever reads this elsewhere stands in another folder.
        if self.lm != "tiny" and Path(self.lm).is_dir():
            object.__setattr__(self, "lm", str(Path(self.lm).resolve()))


class PrefixCaptioner(Adapter[PrefixCaptionerConfig]):
    """A caption's tokens are predicted after k vectors that a mapper makes of the image embedding.

    ClipCap: Mokady et al. 2021, arXiv:2111.09734; also Song et al. 2025, "Image Captioning via CLIP
    Prefix Tuning". The recipe is the paper's MLP with a tuned language model; the paper's other
    setting, a transformer with a frozen language model, stands in `VARIANTS`. Unlike in the paper's
    code, the end token is a target and padding is none, and the normalisation of the features is
    part of the checkpoint. The loss is the mean over the batch's tokens.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("prefix_captioner"), backbone, pairs)
    >>> adapter.prefix(pairs.image_embeds[:2], None).shape  # (B, k, d)
    torch.Size([2, 10, 128])
    """

    Config: ClassVar[type[PrefixCaptionerConfig]] = PrefixCaptionerConfig
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "captioning": {
            "optim.lr": 2e-5,
            "optim.weight_decay": 0.0,
            "optim.schedule": "linear",
            "optim.warmup": 0.035,  # 5,000 steps of COCO's 141,700
            "optim.clip_norm": 0.0,
            "batch_size": 40,
            "epochs": 10,
        }
    }
    VARIANTS: ClassVar[Mapping[Task, Sequence[Mapping[str, Value]]]] = {
        "captioning": [
            {
                "adapter.mapper": "transformer",
                "adapter.lm_mode": "frozen",
                "adapter.prefix_length": 40,
                "adapter.clip_length": 40,
            }
        ]
    }
    FUSES: ClassVar[bool] = False

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        own = self.config
        # What is trained keeps weights in fp32; steps of bf16 would be rounded away.
        bf16 = own.lm_mode == "frozen" and resolved(config.precision, backbone.device) == "bf16"
        dtype = torch.bfloat16 if bf16 else torch.float32
        lm = language_model(backbone, own.lm, own.lm_revision, dtype)
        check(
            own.prefix_length < lm.context_length - lm.ahead - 1,
            "adapter.prefix_length",
            f"below {lm.context_length - lm.ahead - 1}, which `{own.lm}` has beside a word",
            own.prefix_length,
        )
        check(own.beams <= lm.vocabulary, "adapter.beams", f"at most {lm.vocabulary}", own.beams)
        if own.mapper == "mlp":
            self.mapper: nn.Module = MlpMapper(backbone.embed_dim, lm.width, own.prefix_length)
        else:
            shape = (own.prefix_length, own.clip_length, own.layers, own.heads)
            self.mapper = TransformerMapper(backbone.embed_dim, lm.width, *shape)
        self.pool = TemporalPool(backbone.embed_dim) if own.pooling == "attention" else None
        self._lm = [self._speaker(lm)]
        # Hidden like the backbone: of its tensors, only those that are trained belong here.
        trained = self.lm.model.named_parameters() if own.lm_mode != "frozen" else ()
        self.speaker = nn.ParameterDict(
            {name.replace(".", "-"): p for name, p in trained if p.requires_grad}
        )

    def _speaker(self, lm: LanguageModel) -> LanguageModel:
        """The language model, shared, with updates, or copied, as `lm_mode` has it."""
        own = self.config
        if own.lm_mode == "lora":
            return lm.with_lora(own.lora_rank, own.lora_alpha, own.lora_dropout)
        return lm.copied() if own.lm_mode == "full" else lm

    @property
    def lm(self) -> LanguageModel:
        return self._lm[0]

    @property
    def beside(self) -> dict[str, Any]:
        return {"language_model": self.lm.identity}

    @property
    def notes(self) -> list[str]:
        if self.config.lm != "tiny":
            return []
        return [
            "captions are spoken by the tiny language model of cliptune's demo; "
            "`--set adapter.lm=` takes a folder or, with adapter.lm_revision, a Hub id."
        ]

    def train(self, mode: bool = True) -> PrefixCaptioner:
        if self.config.lm_mode != "frozen":
            self.lm.model.train(mode)
        return super().train(mode)

    def prepare(self, train: SplitFeatures) -> None:
        if self.pool is not None and train.frame_embeds is None:
            raise ConfigError(
                "`adapter.pooling` must be mean where images have no frames, got 'attention': "
                "`cliptune encode --frames` makes them."
            )

    @property
    def read(self) -> int:
        """How many vectors the language model reads before a caption: the prefix, and a start token
        if the model wants one."""
        return self.lm.ahead + self.config.prefix_length

    @property
    def room(self) -> int:
        """The most tokens that a caption may have."""
        return self.lm.context_length - self.read

    def truncated(self, data: SplitFeatures) -> int:
        return int((data.words(self.lm).lengths > self.room).sum())

    def words(self, data: SplitFeatures) -> Tokens:
        return data.words(self.lm).cut(self.room)

    def prefix(self, image_embeds: Tensor, frames: Tensor | None) -> Tensor:
        """The vectors that the language model reads before a caption, of images (B, e) or clips of
        frames (B, F, e): (B, k, d), with a start token in front (B, 1 + k, d)."""
        if self.pool is not None and frames is not None:
            image_embeds = self.pool(frames)
        if self.config.normalize:
            image_embeds = F.normalize(image_embeds.float(), dim=-1)
        vectors: Tensor = self.mapper(image_embeds)
        return self.lm.started(vectors.to(self.lm.dtype))

    def log_probabilities(self, batch: Batch) -> Tensor:
        """The log-probability of each of the K tokens to be learned in a batch of one caption an
        image: (K,)."""
        prefix = self.prefix(batch.image_embeds, batch.frames)
        ids, places, learned = self._targets(batch.tokens)
        vectors = torch.cat([prefix, self.lm.embed(ids[:, :-1])], dim=1)
        logits = self.lm.logits(vectors, places)  # (K, V)
        return -F.cross_entropy(logits, learned, reduction="none")

    def _targets(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Padded ids (B, T); the places that the K tokens to be learned follow, as numbers in
        B x (k + T - 1), where k counts the start token; and the K ids. Made on the CPU, kept."""
        device, own = self.backbone.device, self.config
        key = (type(self), own.paper, self.read, device)
        if key not in tokens.plans:
            lengths = tokens.lengths - int(own.paper)  # the end token is then not learned
            ids = tokens.pad(0)[:, : int(lengths.max())]
            target = torch.arange(ids.shape[1]) < lengths[:, None]
            if own.paper:
                target &= ids != 0
            places = F.pad(target, (self.read - 1, 0)).flatten().nonzero()[:, 0]
            tokens.plans[key] = send((ids, places, ids[target]), device)
        found: tuple[Tensor, Tensor, Tensor] = tokens.plans[key]
        return found

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = -gather(self.log_probabilities(batch)).mean()  # workers hold unlike many tokens
        return loss, {"loss": loss.detach()}

    @torch.no_grad()
    def captions(self, image_embeds: Tensor, frames: Tensor | None = None) -> list[str]:
        own, lm = self.config, self.lm
        how = Decoding(
            own.decoding,
            own.beams,
            own.length_penalty,
            own.top_p,
            own.sampling_temperature if own.decoding == "nucleus" else 1.0,
            min(own.max_tokens, self.room),
            own.no_repeat_ngram,
            self.train_config.seed,
        )
        end = lm.full_stop if own.paper else lm.end_token
        found = decode(lm, self.prefix(image_embeds, frames), how, end, keep_end=own.paper)
        return [lm.text(ids) for ids in found]

    def export(self, folder: Path) -> list[Path]:
        """Write the language model as transformers loads it, its updates merged, and the mapper
        beside it."""
        speaker = folder / "language_model"
        self.lm.save(speaker)
        parts = {"mapper": self.mapper, **({"pool": self.pool} if self.pool else {})}
        tensors = {
            f"{name}.{key}": value.cpu().contiguous()
            for name, part in parts.items()
            for key, value in part.state_dict().items()
        }
        write_bytes(folder / "mapper.safetensors", save(tensors))
        about = asdict(self.config) | {"backbone": self.backbone.name}
        about["start_token"] = self.lm.start_token  # it stands in front of the prefix
        write_json(folder / "mapper.json", about | {"language_model": speaker.name})
        return [speaker, folder / "mapper.safetensors", folder / "mapper.json"]

    def loading(self, folder: Path) -> str:
        return (
            f'AutoModelForCausalLM.from_pretrained("{folder / "language_model"}"), and its prefix '
            f'by load_file("{folder / "mapper.safetensors"}") as mapper.json says'
        )
