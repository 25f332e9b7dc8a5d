"""The causal language model that a captioner speaks with.

Flows in: a local directory in Hugging Face layout, or a Hub id pinned to a commit; or `tiny`, the
one that ships with cliptune. Flows out: a `LanguageModel`, frozen and in eval mode, that takes
vectors in the place of words. Only safetensors and JSON are read.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.pytorch_utils import Conv1D

from trainables.data.batches import Tokens
from trainables.errors import ConfigError, DataError
from trainables.hardware import full
from trainables.models.backbone import Backbone
from trainables.models.model_folder import (
    existing,
    fingerprint,
    isolated,
    load_model,
    locate,
    no_bars,
)
from trainables.models.tokenizer import check_fits

TINY = Path(__file__).parent / "tiny_lm"  # it knows the words of the demo, and spells others
CHUNK = 4096  # captions tokenised at a time


@dataclass(frozen=True)
class LanguageModel:
    """A causal transformer of width d over V tokens, such as GPT-2 or Llama."""

    name: str
    revision: str | None
    fingerprint: str
    model: Any  # a transformers `...ForCausalLM`
    tokenizer: Any
    width: int  # d
    context_length: int  # positions
    end_token: int  # EOS
    plain: bool  # logits are the output matrix times the last states, and nothing more
    start_token: int | None = None  # BOS, where its tokenizer puts one in front of every text
    peft: Any = None  # the model as PEFT wraps it, where it has low-rank updates

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights, and of the vectors that it reads."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    @property
    def vocabulary(self) -> int:
        """V, the number of tokens."""
        size: int = self.model.get_input_embeddings().weight.shape[0]
        return size

    @property
    def full_stop(self) -> int:
        """The token of "." at the end of a word. (Tokenised alone, "." begins a word in some
        tokenizers.)"""
        token: int = self.tokenizer("a.", add_special_tokens=False)["input_ids"][-1]
        return token

    @property
    def identity(self) -> dict[str, str | None]:
        return {"name": self.name, "revision": self.revision, "fingerprint": self.fingerprint}

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (B, T) as the model sees them: (B, T, d)."""
        vectors: Tensor = self.model.get_input_embeddings()(ids)
        return vectors

    def started(self, prefix: Tensor) -> Tensor:
        """`prefix` (B, k, d) with the start token in front, if the model wants one: a model that
        has always seen a start token makes little of a text without it."""
        if self.start_token is None:
            return prefix
        start = self.embed(torch.tensor([[self.start_token]], device=prefix.device))
        return torch.cat([start.to(prefix.dtype).expand(len(prefix), -1, -1), prefix], dim=1)

    @property
    def ahead(self) -> int:
        """How many positions the start token takes: 1 or 0."""
        return int(self.start_token is not None)

    def logits(self, vectors: Tensor, places: Tensor) -> Tensor:
        """The logits (K, V), fp32, of the tokens that follow K `places` in vectors (B, T, d);
        places are numbers in B x T.

        Padding must stand behind the words: no place sees what comes after it, so padding needs no
        mask. The output matrix, whose V is 50,257 in GPT-2, is multiplied at these places only.
        """
        # Without a cache, transformers would read from the device whether sequences are packed.
        given = {
            "inputs_embeds": vectors,
            "past_key_values": DynamicCache(config=self.model.config),
        }
        if not self.plain:
            every: Tensor = self.model(**given, use_cache=False).logits
            return every.flatten(0, 1)[places].float()
        states = self.model.base_model(**given, use_cache=False).last_hidden_state
        return self._head(states.flatten(0, 1)[places])

    def after(self, cache: Any = None, **given: Tensor) -> tuple[Tensor, Any]:
        """The logits of the next token, (B, V) fp32, after B rows of `inputs_embeds` (B, T, d) or
        `input_ids` (B, T) that stand behind the tokens in `cache`; and the cache with the new
        rows."""
        known = {**given, "past_key_values": cache, "use_cache": True}
        if not self.plain:
            out = self.model(**known, logits_to_keep=1)
            return out.logits[:, -1].float(), out.past_key_values
        out = self.model.base_model(**known)
        return self._head(out.last_hidden_state[:, -1]), out.past_key_values

    def _head(self, states: Tensor) -> Tensor:
        """The output matrix applied in fp32, whatever a step's precision is: logits are numbers
        such as 100, for which bf16 has steps of a half."""
        output = self.model.get_output_embeddings()
        weight, bias = output.weight, output.bias
        if weight.dtype != torch.float32:  # then it is frozen
            weight, bias = self._exact_output
        with full(states.device):
            return F.linear(states.float(), weight, bias)

    @cached_property
    def _exact_output(self) -> tuple[Tensor, Tensor | None]:
        """A frozen output matrix in fp32, made once: making it takes longer than a step of
        decoding."""
        output = self.model.get_output_embeddings()
        bias = None if output.bias is None else output.bias.float()
        return output.weight.float(), bias

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Texts as ragged ids, each with EOS at its end. A special token's name inside a text is
        text like any other."""
        ids: list[Tensor] = [torch.zeros(0, dtype=torch.int64)]
        lengths = [0]
        for start in range(0, len(texts), CHUNK):
            words = self.tokenizer(
                list(texts[start : start + CHUNK]),
                add_special_tokens=False,
                split_special_tokens=True,
                verbose=False,
            )["input_ids"]
            ids += [torch.tensor([*row, self.end_token]) for row in words]
            lengths += [len(row) + 1 for row in words]
        return Tokens(torch.cat(ids), torch.tensor(lengths).cumsum(0))

    def text(self, ids: Sequence[int]) -> str:
        words: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return " ".join(words.split())

    def shared(self) -> LanguageModel:
        """The same weights under other module objects: modules that PEFT injects there stay
        there."""
        return replace(self, model=isolated(self.model))

    def with_lora(self, rank: int, alpha: float, dropout: float) -> LanguageModel:
        """The model with low-rank updates to be trained, where PEFT puts them in this kind of
        model."""
        tuned = self.shared()
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type, unused-ignore]  # PEFT only divides it
            lora_dropout=dropout,
            # Where PEFT has no choice of its own for a kind of model.
            target_modules=None if tuned.model.config.model_type in TARGETS else "all-linear",
            exclude_modules=_unused(tuned.model) or None,
        )
        with warnings.catch_warnings():
            # GPT-2 keeps its matrices transposed; PEFT sees that, and says so each time.
            warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)
            # PEFT 0.21 asks transformers for an attribute that was renamed.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            return replace(tuned, peft=get_peft_model(tuned.model, config))

    def save(self, folder: Path) -> None:
        """Write the model as transformers loads it, low-rank updates added to its weights."""
        plain: Any = copy.deepcopy(self.peft).merge_and_unload() if self.peft else self.model
        if self.dtype != torch.float32:  # a copy for reading, of weights that may say more
            plain = load_language_model(self.name, self.revision).model
        with no_bars():
            plain.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def copied(self) -> LanguageModel:
        """The model with weights of its own, to be trained."""
        return replace(self, model=copy.deepcopy(self.model).requires_grad_(True))


def language_model(
    backbone: Backbone,
    name: str,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """The language model `name` on the backbone's device, loaded once a process and `dtype`."""
    key = f"language model {name}@{revision} {dtype}"
    if key not in backbone.beside:
        backbone.beside[key] = load_language_model(name, revision, backbone.device, dtype)
    found: LanguageModel = backbone.beside[key]
    return found


def load_language_model(
    name: str,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """The model in directory `name`, or on the Hub under that id at commit `revision`, its weights
    as `dtype`.

    Raises `ConfigError` for a model that cannot speak after a prefix: one without input vectors of
    known width, or with a tokenizer without an end token.
    """
    folder = TINY if name == "tiny" else locate(name, revision, "adapter.lm_revision")
    existing(folder, "config.json")
    model = load_model(folder, AutoModelForCausalLM, None, dtype).to(device)
    weight = getattr(model.get_input_embeddings(), "weight", None)
    if weight is None or weight.ndim != 2 or model.get_output_embeddings() is None:
        raise ConfigError(
            f"`{name}`: the width of its word vectors is unknown: a {type(model).__name__} has no "
            "matrix of input or output embeddings, so no prefix can be made for it."
        )
    tokenizer = _load_tokenizer(folder, name, len(weight))
    return LanguageModel(
        name=name if revision is not None or name == "tiny" else str(folder.resolve()),
        revision=revision,
        fingerprint=fingerprint(folder),
        model=model,
        tokenizer=tokenizer,
        width=weight.shape[1],
        context_length=_positions(model),
        end_token=tokenizer.eos_token_id,
        start_token=_start_token(tokenizer),
        plain=_is_plain(model, weight),
    )


def _load_tokenizer(folder: Path, name: str, vocabulary: int) -> Any:
    if not (folder / "tokenizer.json").is_file():
        existing(folder, "vocab.json")
        existing(folder, "merges.txt")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"the tokenizer in `{folder}` could not be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"`{name}`: its tokenizer must have an end token (`eos_token` in "
            "tokenizer_config.json), or captions would never end; it has none."
        )
    check_fits(tokenizer, vocabulary, name)
    return tokenizer


def _start_token(tokenizer: Any) -> int | None:
    """BOS if the tokenizer begins a text with it. Having a BOS is not enough: GPT-2's tokenizer has
    one and does not use it."""
    ids, bos = tokenizer("a")["input_ids"], tokenizer.bos_token_id
    return bos if bos is not None and ids[0] == bos and len(ids) > 1 else None


def _positions(model: Any) -> int:
    text = model.config.get_text_config(decoder=True)  # it may be one tower of several
    return getattr(text, "max_position_embeddings", None) or 1 << 20


@torch.no_grad()
def _unused(model: Any) -> list[str]:
    """The matrices that no word passes through, such as those of a tower for pictures."""
    linear = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    used: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: used.add(name))
        for name, module in linear.items()
    ]
    model(inputs_embeds=model.get_input_embeddings().weight[None, :4], use_cache=False)
    for hook in hooks:
        hook.remove()
    return sorted(linear.keys() - used)


@torch.no_grad()
def _is_plain(model: Any, weight: Tensor) -> bool:
    """Whether the logits are the output matrix times the last states. Some models scale or cap
    their logits."""
    vectors = weight[None, :4]  # (1, 4, d)
    states = model.base_model(inputs_embeds=vectors, use_cache=False).last_hidden_state
    ours = model.get_output_embeddings()(states)
    return torch.allclose(ours, model(inputs_embeds=vectors, use_cache=False).logits, atol=1e-5)
