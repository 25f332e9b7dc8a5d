"""The objective: similarities of images and words in, a scalar and log numbers out.

Captions are learnt by contrast, classes by cross-entropy. In a contrast, pairs are told apart by
group numbers, never by position: an image may bring several captions, and stand in two rows, and
none of its captions counts as a negative of another.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import LossConfig, TemperatureConfig
from trainables.distributed import gather, shared
from trainables.hardware import full
from trainables.losses.schedules import adapted, cosine_scale
from trainables.models.backbone import Backbone


class Objective(nn.Module):
    """Loss and temperature: contrastive over the rows of all workers, or cross-entropy of classes.

    tau multiplies cosine similarities. `log_scale` is a parameter where tau is learned, a buffer
    where it is adaptive, and absent otherwise. `bias` is a parameter of the sigmoid loss. A SigLIP
    backbone brings its trained bias. CLIP has none, and the -10 that SigLIP starts from belongs to
    its tau of 10, not to CLIP's 100; so with CLIP the first batch sets the bias such that as many
    pairs are called positive as truly are.
    """

    start: Tensor
    final: Tensor
    low: Tensor  # the logarithms
    high: Tensor
    target_entropy: Tensor
    rate: Tensor
    smoothing: Tensor
    hardness: Tensor
    log_scale: Tensor
    bias: Tensor
    bias_is_set: Tensor

    def __init__(
        self, loss: LossConfig, temperature: TemperatureConfig, backbone: Backbone
    ) -> None:
        super().__init__()
        self.config, self.temperature = loss, temperature
        self.trained_scale = backbone.scale
        # Numbers that trials of one shape may differ in are tensors: fused, they are stacked.
        values = self._values(loss, temperature)
        for name, value in values.items():
            self.register_buffer(name, torch.tensor(value), persistent=False)
        log_scale = torch.tensor(math.log(values["start"]))
        if temperature.policy == "learned":
            self.log_scale = nn.Parameter(log_scale)
        elif temperature.policy == "adaptive":
            self.register_buffer("log_scale", log_scale)
        self.calibrated = loss.kind != "siglip"  # `bias_is_set`, once it was read to be true
        if loss.kind == "siglip":
            self.bias = nn.Parameter(torch.tensor(backbone.bias))
            self.register_buffer("bias_is_set", torch.tensor(backbone.kind == "siglip"))

    def _values(self, loss: LossConfig, temperature: TemperatureConfig) -> dict[str, float]:
        scale = temperature.scale
        return {
            "start": self.trained_scale if scale is None else scale,
            "final": temperature.final,
            "low": math.log(temperature.low),
            "high": math.log(temperature.high),
            "target_entropy": temperature.target_entropy,
            "rate": temperature.rate,
            "smoothing": loss.label_smoothing,
            "hardness": loss.hardness,
        }

    @torch.no_grad()
    def follow(self, loss: LossConfig, temperature: TemperatureConfig) -> None:
        """Go on with other numbers, in place: in runs that train together, they are views of a
        stack."""
        for name, value in self._values(loss, temperature).items():
            self.get_buffer(name).fill_(value)

    def forward(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        image_groups: Tensor,
        caption_groups: Tensor,
        progress: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss; B and M are this worker's images and captions, `progress` that of the run."""
        with full(image_embeds.device):
            images = gather(F.normalize(image_embeds.float(), dim=-1))  # (B, e)
            texts = gather(F.normalize(text_embeds.float(), dim=-1))  # (M, e)
            same = gather(image_groups)[:, None] == gather(caption_groups)  # (B, M)
            similarity = images @ texts.T  # (B, M)
            scale = self.scale(progress)
            logits = scale * similarity
            loss = self._loss(logits, same)
            entropy = self._observe(logits, logits.T)
        return loss, _numbers(loss, scale, similarity, same, entropy)

    def classify(
        self, similarity: Tensor, labels: Tensor, progress: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of tau times the similarity of (B, C) images and classes; labels (B,).

        Label smoothing as of any classifier. The other fields of `loss` are about captions.
        """
        with full(similarity.device):
            similarity = similarity.float()
            same = labels[:, None] == torch.arange(similarity.shape[1], device=labels.device)
            scale = self.scale(progress)
            logits = scale * similarity
            loss = _cross_entropy(logits, same, self.smoothing, None)
            entropy = self._observe(logits)
        numbers = _numbers(loss, scale, similarity, same, entropy)
        right = (logits.argmax(1) == labels).float().mean()
        return loss, numbers | {"accuracy": right.detach()}

    @torch.no_grad()
    def settle(self) -> None:
        """Move a learned tau back into its range, before each step. A clamp in the graph would have
        no gradient outside the range, and tau could never return."""
        if self.temperature.policy == "learned":
            self.log_scale.clamp_(self.low, self.high)

    def scale(self, progress: Tensor) -> Tensor:
        """tau at a share of the run."""
        if self.temperature.policy in ("learned", "adaptive"):
            return self.log_scale.exp()
        if self.temperature.policy == "cosine":
            return cosine_scale(self.start, self.final, progress)
        return self.start

    def _loss(self, logits: Tensor, same: Tensor) -> Tensor:
        hardness = self.hardness if self.config.hard_negatives == "reweight" else None
        if self.config.kind == "infonce":
            return infonce(logits, same, self.smoothing, hardness)
        if not self.calibrated:
            if not self.bias_is_set:
                with torch.no_grad():
                    self.bias.copy_(shared(-logits.flatten().topk(int(same.sum())).values[-1]))
                    self.bias_is_set.fill_(True)
            self.calibrated = True
        return siglip(logits + self.bias, same, self.smoothing, hardness)

    @torch.no_grad()
    def _observe(self, *logits: Tensor) -> Tensor:
        """Move an adaptive tau by the softmaxes' entropy, as a share of its maximum."""
        entropy = torch.stack([entropy_share(one) for one in logits]).mean()
        if self.training and self.temperature.policy == "adaptive":
            entropy = shared(entropy)  # a worker may have seen its own rows only
            rule = (self.rate, self.target_entropy, self.low, self.high)
            self.log_scale.copy_(adapted(self.log_scale, entropy, *rule))
        return entropy


def _numbers(
    loss: Tensor, scale: Tensor, similarity: Tensor, same: Tensor, entropy: Tensor
) -> dict[str, Tensor]:
    """The numbers of a step to log."""
    numbers = {
        "loss": loss,
        "scale": scale,
        "positive": (similarity * same).sum() / same.sum(),
        "negative": (similarity * ~same).sum() / (~same).sum().clamp_min(1),
        "entropy": entropy,
    }
    return {name: value.detach() for name, value in numbers.items()}


Number = float | Tensor


def infonce(
    logits: Tensor, same: Tensor, smoothing: Number = 0.0, hardness: Number | None = None
) -> Tensor:
    """Symmetric InfoNCE of (B, M) logits (CLIP) with multi-positive targets (LAVIS).

    `same` (B, M) says which pairs share a group. The target of a row is spread evenly over them, in
    both directions. `smoothing` is the share of the target that goes to all M (or B) candidates
    alike.

    >>> round(infonce(torch.eye(3), torch.eye(3).bool()).item(), 4)
    0.5514
    """
    to_text = _cross_entropy(logits, same, smoothing, hardness)
    to_image = _cross_entropy(logits.T, same.T, smoothing, hardness)
    return 0.5 * (to_text + to_image)


def _cross_entropy(
    logits: Tensor, same: Tensor, smoothing: Number, hardness: Number | None
) -> Tensor:
    targets = same / same.sum(1, keepdim=True).clamp_min(1)  # (rows, candidates)
    targets = (1 - smoothing) * targets + smoothing / same.shape[1]
    if hardness is not None:
        logits = logits + log_weights(logits, ~same, hardness)
    return -(targets * logits.log_softmax(1)).sum(1).mean()


def siglip(
    logits: Tensor, same: Tensor, smoothing: Number = 0.0, hardness: Number | None = None
) -> Tensor:
    """The sigmoid loss (Zhai et al. 2023): -sum over pairs of log sigmoid(z * logit), over B.

    z is +1 for every pair of one group, -1 for all others. `smoothing` takes half its share of each
    pair's label to the other side.
    """
    labels = same * (1 - smoothing) + smoothing / 2  # (B, M)
    weights = None
    if hardness is not None:
        flat = log_weights(logits.flatten()[None], ~same.flatten()[None], hardness)
        weights = flat.view_as(logits).exp()
    loss = F.binary_cross_entropy_with_logits(logits, labels, weights, reduction="sum")
    return loss / len(logits)


@torch.no_grad()
def log_weights(logits: Tensor, negative: Tensor, hardness: Number) -> Tensor:
    """Logarithms of the weights of a row's negatives (Robinson et al. 2021), 0 for the others.

        w_j = exp(hardness * logit_j) / mean over the row's negatives of exp(hardness * logit)

    The weights have a mean of 1: they move the loss's attention to the negatives that look most
    alike, without changing its size. They carry no gradient. (The paper's correction for false
    negatives is not needed: groups say which pairs are true.)
    """
    hard = (hardness * logits).masked_fill(~negative, -torch.inf)
    mean = hard.logsumexp(1, keepdim=True) - negative.sum(1, keepdim=True).log()
    return torch.where(negative, hard - mean, 0.0)


def entropy_share(logits: Tensor) -> Tensor:
    """The mean entropy of the rows' softmax, as a share of its maximum log(K): in [0, 1]."""
    log_probability = logits.log_softmax(1)
    entropy = -(log_probability.exp() * log_probability).sum(1).mean()
    return entropy / math.log(max(2, logits.shape[1]))
