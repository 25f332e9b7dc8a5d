#!/usr/bin/env bash
# ijson's C backend ends the process at an integer of more than 4,300 digits.
#
# One expects an error, as `json` has it: Python refuses to make an int of so many digits. Instead
# the process ends by a segmentation fault. And half a surrogate pair, which `json` reads as it is
# written, is read as "?" without a word.
# What to do: read files that others wrote with `json.JSONDecoder.raw_decode`.
#
# Seen with ijson 3.6.0, yajl2_c, Python 3.11: exit code 139, and ['? x'].
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ijson==3.6.0
cat > "$folder/read.py" <<'PYTHON'
import io
import sys

from ijson.backends import yajl2_c

text = {"digits": b"[" + b"1" * 5_000 + b"]", "surrogate": rb'["\ud800 x"]'}[sys.argv[1]]
print(list(yajl2_c.items(io.BytesIO(text), "item")))
PYTHON
"$folder/venv/bin/python" "$folder/read.py" surrogate
"$folder/venv/bin/python" "$folder/read.py" digits || echo "exit code $?"
