"""The preprocessing as a program of ONNX: pictures of any size in, the tower's squares out.

Flows in: how a CLIP's processor prepares a picture, and a program that takes squares. Flows out:
one that takes `pictures`, uint8 RGB (B, H, W, 3), as a decoder gives them with their EXIF
orientation applied.

onnxruntime's antialiased `Resize` of uint8 computes as Pillow does: passes of fixed-point numbers,
each rounded and cut to 0 ... 255. Its `Resize` of floats cuts nothing, and is up to 24 levels off.
"""

from __future__ import annotations

from pathlib import Path

from trainables.media.preprocess import MAX_ASPECT, Preprocess

LEVELS = 2  # of 255, as far as a pixel may be off
SQUARES = "prepare/squares"  # what the tower sees, by its name in the program
MODES = {"bicubic": "cubic", "bilinear": "linear"}
# What `Preprocess.apply` does; sides are height and width, int64[2]. Two Resizes stand for Pillow's
# two passes: it takes the rows last, unless there are far more of them to lose than of columns.
PROGRAM = """
<ir_version: {version}, opset_import: ["": {opset}]>
prepare (uint8[batch, height, width, 3] pictures)
    => (uint8[batch, 3, {size}, {size}] squares) {{
  none = Constant <value = int64[1] {{0}}> ()
  one = Constant <value = int64[1] {{1}}> ()
  two = Constant <value = int64[1] {{2}}> ()
  square = Constant <value = int64[2] {{{size}, {size}}}> ()
  {planes}
  planes = Concat <axis = 1> (plane0, plane1, plane2)
  given = Shape <start = 2> (planes)
  {before}
  lost = Sub (kept, sides)
  rows = Gather (lost, none)
  columns = Gather (lost, one)
  fewer = Max (columns, none)
  twice = Mul (fewer, two)
  rows_first = Greater (rows, twice)
  columns_first = Not (rows_first)
  first = Concat <axis = 0> (rows_first, columns_first)
  between = Where (first, sides, kept)
  half = {resize} (strip, , , between)
  resized = {resize} (half, , , sides)
  {behind}
}}
"""
# One by one: a Transpose is moved behind Resize by onnxruntime, which then reads wrong `sizes`.
PLANE = """channel{0} = Constant <value = int64 {{{0}}}> ()
  image{0} = Gather <axis = 3> (pictures, channel{0})
  plane{0} = Unsqueeze (image{0}, one)"""
RESIZE = """Resize <antialias = 1, axes = [2, 3], mode = "{mode}", cubic_coeff_a = -0.5,
    coordinate_transformation_mode = "half_pixel", exclude_outside = 1>"""
BEFORE = {
    "squash": """strip = Identity (planes)
  kept = Identity (given)
  sides = Identity (square)""",
    "crop": """axes = Constant <value = int64[2] {{2, 3}}> ()
  aspect = Constant <value = int64[1] {{{aspect}}}> ()
  edge = Constant <value = int64[1] {{{edge}}}> ()
  short = ReduceMin <keepdims = 1> (given)
  limit = Mul (short, aspect)
  kept = Min (given, limit)
  spare = Sub (given, kept)
  start = Div (spare, two)
  stop = Add (start, kept)
  strip = Slice (planes, start, stop, axes)
  larger = Mul (kept, edge)
  sides = Div (larger, short)""",
}
BEHIND = {
    "squash": "squares = Identity (resized)",
    "crop": """margin = Sub (sides, square)
  begin = Div (margin, two)
  end = Add (begin, square)
  squares = Slice (resized, begin, end, axes)""",
}


def put_in_front(path: Path, how: Preprocess) -> None:
    """Let the program in `path`, which takes squares, take pictures."""
    import onnx
    from onnx import compose, parser

    tower = onnx.load(path)
    (opset,) = (one.version for one in tower.opset_import if not one.domain)
    text = PROGRAM.format(
        version=tower.ir_version,
        opset=opset,
        size=how.size,
        planes="\n  ".join(PLANE.format(channel) for channel in range(3)),
        before=BEFORE[how.kind].format(aspect=MAX_ASPECT, edge=how.resize),
        resize=RESIZE.format(mode=MODES[how.mode]),
        behind=BEHIND[how.kind],
    )
    # Its names meet none of the tower's.
    front = compose.add_prefix(parser.parse_model(text), "prepare/", rename_inputs=False)
    names = [(SQUARES, tower.graph.input[0].name)]
    onnx.save(compose.merge_models(front, tower, io_map=names), path)


def showing_squares(path: Path) -> bytes:
    """The program in `path` with what the tower sees as one more output."""
    import onnx

    program = onnx.load(path)
    shape = ["batch", 3, *[None] * 2]
    program.graph.output.append(
        onnx.helper.make_tensor_value_info(SQUARES, onnx.TensorProto.UINT8, shape)
    )
    whole: bytes = program.SerializeToString()
    return whole
