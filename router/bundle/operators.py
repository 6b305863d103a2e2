"""Which operators a graph has, read from its bytes before anything runs it.

The runtime has no onnx package, so this walks the protocol buffer itself: the fields of ModelProto, GraphProto,
NodeProto and TensorProto that say what would run (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). No tensor is
copied.
"""

from __future__ import annotations

from collections.abc import Iterator

OWN = frozenset(
    "Add ArgMax Cast Clip Concat Constant Div Exp Gather Gemm GreaterOrEqual HardSigmoid Log LpNormalization MatMul "
    "Max Min Mul Pad ReduceMax ReduceSumSquare Scaler Sigmoid Softmax Split Squeeze Sub TreeEnsembleRegressor "
    "Unsqueeze Where".split()
)
"""What the exporter writes for its own encoders, its models and the decision."""

OF_TRANSFORMERS = frozenset(
    "Abs And ArgMin Ceil ConstantOfShape Conv Cos CumSum Dropout Einsum Elu Equal Erf Expand Flatten Floor "
    "GatherElements GatherND Greater Identity IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual LogSoftmax Mod "
    "Neg NonZero Not OneHot Or Pow PRelu Range Reciprocal ReduceL2 ReduceMean ReduceMin ReduceProd ReduceSum Relu "
    "Reshape Round ScatterElements ScatterND Selu Shape Sign Sin Size Slice Softplus Softsign Sqrt Sum Tanh "
    "Tile TopK Transpose Trilu Xor".split()
)
"""What torch's exporter writes for transformers besides: arithmetic on tensors, no loop, no branch, no chance."""

OF_CONVERTERS = frozenset(
    "ArrayFeatureExtractor LinearClassifier LinearRegressor Normalizer ReduceLogSumExp SVMClassifier "
    "TreeEnsembleClassifier".split()
)
"""What skl2onnx and onnxmltools write besides for classifiers of one's own: linear models, kernels, trees."""

_KNOWN = OWN | OF_TRANSFORMERS | OF_CONVERTERS

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")

_GRAPH, _TRAINING, _FUNCTIONS = 7, 20, 25  # of ModelProto
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15  # of GraphProto
_OPERATOR, _ATTRIBUTE, _DOMAIN = 4, 5, 7  # of NodeProto
_TENSOR, _TENSORS, _SPARSE_TENSOR, _SPARSE_TENSORS = 5, 10, 22, 23  # of AttributeProto
_DIMS, _EXTERNAL_DATA, _DATA_LOCATION = 1, 13, 14  # of TensorProto

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # how a field is written
_MOST_FIELDS = 1_000_000


def refused_operators(graph: bytes) -> str:
    """What in a graph the exporter never writes, in words; empty where there is nothing.

    graph: the content of an ONNX file. Refused are operators outside OWN, OF_TRANSFORMERS and OF_CONVERTERS, such as
    Loop, Scan and If; functions, training steps and sparse tensors; tensors that are kept in other files or claim to be
    larger than the file.
    """
    try:
        return next(_refused(_Walk(memoryview(graph))), "")
    except (ValueError, IndexError) as error:
        return f"is no ONNX graph ({error})"


class _Walk:
    """The fields of protocol buffers; raises ValueError where there are more of them than any graph of ours has."""

    def __init__(self, model: memoryview) -> None:
        self.model = model
        self._n_fields = 0

    def fields(self, message: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """Number, value and content of each field; the value is 0 where there is content, which is empty elsewhere."""
        position, end = 0, len(message)
        while position < end:
            self._n_fields += 1
            if self._n_fields > _MOST_FIELDS:
                raise ValueError(f"more than {_MOST_FIELDS:,} fields")
            tag, position = _varint(message, position)
            kind, value, size = tag & 7, 0, 0
            if kind == _VARINT:
                value, position = _varint(message, position)
            elif kind == _LENGTH:
                size, position = _varint(message, position)
            elif kind in (_FOUR_BYTES, _EIGHT_BYTES):
                size = 4 if kind == _FOUR_BYTES else 8
            else:
                raise ValueError(f"a field of kind {kind}")
            if position + size > end:
                raise ValueError("a field is longer than what it is in")
            yield tag >> 3, value, message[position : position + size]
            position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The number at this position, and the position behind it."""
    value = message[position]
    if value < 128:
        return value, position + 1
    value &= 127
    for shift in range(7, 70, 7):
        position += 1
        byte = message[position]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position + 1
    raise ValueError("a number of more than 10 bytes")


def _refused(walk: _Walk) -> Iterator[str]:
    for number, _, content in walk.fields(walk.model):
        if number == _GRAPH:
            yield from _refused_in_graph(walk, content)
        elif number in (_TRAINING, _FUNCTIONS):
            yield "has functions or training steps; expected one plain graph"


def _refused_in_graph(walk: _Walk, graph: memoryview) -> Iterator[str]:
    for number, _, content in walk.fields(graph):
        if number == _NODE:
            yield from _refused_in_node(walk, content)
        elif number == _INITIALIZER:
            yield from _refused_in_tensor(walk, content)
        elif number == _SPARSE_INITIALIZER:
            yield "has a sparse tensor; expected plain ones"


def _refused_in_node(walk: _Walk, node: memoryview) -> Iterator[str]:
    attributes, operator = [], ""
    for number, _, content in walk.fields(node):
        if number == _ATTRIBUTE:
            attributes.append(content)
        elif number == _OPERATOR:
            operator = _name(content)
            if operator not in _KNOWN:
                yield f"has the operator {operator!r}; expected only operators that the exporter writes"
        elif number == _DOMAIN and _name(content) not in DOMAINS:
            yield f"has an operator of {_name(content)!r}; expected only those of ai.onnx and ai.onnx.ml"
    if operator in ("Constant", "ConstantOfShape"):  # No other operator of the list takes a tensor as attribute.
        for attribute in attributes:
            yield from _refused_in_attribute(walk, attribute)


def _refused_in_attribute(walk: _Walk, attribute: memoryview) -> Iterator[str]:
    for number, _, content in walk.fields(attribute):
        if number in (_TENSOR, _TENSORS):
            yield from _refused_in_tensor(walk, content)
        elif number in (_SPARSE_TENSOR, _SPARSE_TENSORS):
            yield "has a sparse tensor; expected plain ones"


def _name(content: memoryview) -> str:
    """A name, cut short; longer than any that is known."""
    return bytes(content[:80]).decode(errors="replace")


def _refused_in_tensor(walk: _Walk, tensor: memoryview) -> Iterator[str]:
    n_values = 1
    for number, value, content in walk.fields(tensor):
        if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value):
            yield "keeps a tensor in another file; expected all in one"
        elif number == _DIMS and len(content):  # Several sizes in one field.
            position = 0
            while position < len(content):
                value, position = _varint(content, position)
                n_values *= value
        elif number == _DIMS:
            n_values *= value
    if n_values > 2 * len(tensor):  # The smallest values take half a byte.
        yield f"has a tensor of {n_values:,} values in {len(tensor):,} bytes; expected them all to be there"
