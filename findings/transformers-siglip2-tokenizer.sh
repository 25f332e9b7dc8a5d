#!/usr/bin/env bash
# A tokenizer.json alone does not say what ids SigLIP 2 gets: its class changes them, and the padding.
#
# One expects that `PreTrainedTokenizerFast` and `AutoTokenizer` read the same ids from the same
# tokenizer.json. Instead `Siglip2Tokenizer`, if tokenizer_config.json names it, puts all text into
# lower case first; the file itself says nothing of that. The class also pads on the left unless
# `padding_side` is written down, though `SiglipTokenizer`, for models of the same kind, pads on the
# right, and to such a model, which reads its last position, the side is another input.
# What to do: load by the class that is named, and write `padding_side` into the folder.
#
# Seen with transformers 5.23.0, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0
"$folder/venv/bin/python" - "$folder/model" <<'PYTHON'
import json
import sys
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

folder = Path(sys.argv[1])
folder.mkdir()
marks = ["<pad>", "<eos>", "<bos>", "<unk>"]
words = Tokenizer(models.BPE(unk_token="<unk>"))
words.normalizer = normalizers.Replace(" ", "_")
words.train_from_iterator(["A Dog", "a dog"] * 9, trainers.BpeTrainer(special_tokens=marks))
words.save(str(folder / "tokenizer.json"))
(folder / "config.json").write_text(json.dumps({"model_type": "siglip"}))
about = {"tokenizer_class": "Siglip2Tokenizer", "pad_token": "<pad>", "eos_token": "<eos>"}
(folder / "tokenizer_config.json").write_text(json.dumps(about))

print("transformers", transformers.__version__)
file, named = PreTrainedTokenizerFast.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
ids = {type(one).__name__: one(["A Dog", "a dog"])["input_ids"] for one in (file, named)}
print("ids of 'A Dog' and 'a dog':", ids)
print("padding:", file.padding_side, "by the file,", named.padding_side, "by the class")
big, small = file(["A Dog", "a dog"])["input_ids"]
assert big != small, "this has changed"
big, small = named(["A Dog", "a dog"])["input_ids"]
assert big == small, "this has changed"
assert named.padding_side == "left", "this has changed"
PYTHON
