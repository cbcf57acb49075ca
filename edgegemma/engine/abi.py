"""What a package's graphs may contain: versions, glue ops, functions and the bodies this engine stands for.

The contract is ``docs/functions.md``. A body is known by the sha256 of its deterministic serialisation;
a test compares this list with what `export.functions` writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgegemma.errors import UnsupportedError

if TYPE_CHECKING:
    from edgegemma.engine.graph import Function, Graph, Node

DOMAIN = "edgegemma"
IR_VERSION = 10
OPSETS = {"": 23, "com.microsoft": 1, DOMAIN: 1}
UPDATE = "update edgegemma, or export the package again with this version"

GLUE = frozenset(
    {
        "Cast",
        "Constant",
        "Identity",
        "Neg",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Unsqueeze",
    }
)

BODIES: dict[str, frozenset[str]] = {
    "AudioHead": frozenset(
        {
            "fc4c9268c3225d38aaaa53b1454d1fa0fd232b0d0a8ed82cdb27040f0e569dcb",
        }
    ),
    "AudioLayer": frozenset(
        {
            "3029352a3cead2633580867d62eccd0989f2fbe85526e800b3169b3b12a0b65e",
        }
    ),
    "AudioSubsample": frozenset(
        {
            "7a91c407c97ced39e7222df8da04a7c3bbaebb7dd4643486c621d81c13127cc5",
        }
    ),
    "ClippedLinear": frozenset(
        {
            "8cd26409e32accb9e002953dfb7a633bc922d4839288513c70fb8b3ecac86f4d",
        }
    ),
    "DecoderLayer": frozenset(
        {
            "82484b60b07f7074191fa45b11e35c2d0eecf9a9c36b035433518b1d1e5f6c10",
        }
    ),
    "DecoderLayerExperts": frozenset(
        {
            "76860f74a44cf95372291d1953dbdfa5766230b0aa72a1d5c48882debe5cbacd",
        }
    ),
    "DecoderLayerExpertsTied": frozenset(
        {
            "89c75239b89c29aab91c1acad8046d82156767d42ab170d4d36597b2330224fa",
        }
    ),
    "DecoderLayerPlain": frozenset(
        {
            "31190ce79e982c847303f6230eaf4016944a162db785128e583c0af6c63e4405",
        }
    ),
    "DecoderLayerPlainTied": frozenset(
        {
            "5f42391dd20146962b92f1f4a191cbe95d01924e8fa403ff4ecc829e50e2cfdb",
        }
    ),
    "DecoderLayerShared": frozenset(
        {
            "fb433d4774437eba0f6180c278ddba45272beb0f57212da84fcc97bcbbb75a63",
        }
    ),
    "ExpertLinear": frozenset(
        {
            "f273aff7b8ae8319c77da7869d0d385c4ccb641365acd835049c218e7a848b8b",
            "838bbb4788f4ab5144b85afa0a1c2a48f44c3c5598c64b96911a027fd8992fba",
        }
    ),
    "GatherRows": frozenset(
        {
            "dc1392c724e1fdcbbfbbfcdc178eb52d7c77f18fde163747f5a4bdba90602cdb",
            "ea96c01c4764f90b7eb85f056b71105c7f8662c00123df2ce65e87596153811c",
        }
    ),
    "Head": frozenset(
        {
            "786558bb2db6cedecca2093afb8706506fbfb789d5b1341489ba801dbbaefeb6",
        }
    ),
    "Linear": frozenset(
        {
            "fcf6c2b63ec05fc5d07308ae07c16b726a1beaf3a360784fc29df5da1ededa7d",
            "d5026236cfb52468fcd716b2060a843a253f0867f245918677dbe05d4b054eb5",
        }
    ),
    "MoEFeedForward": frozenset(
        {
            "9fb82b733d91c2c0d15ef4796904fe6885b883cff0f5f33292e594aa6dc2bd3d",
        }
    ),
    "PerLayerInputs": frozenset(
        {
            "0319ca5ff3319994af7ebed1bfade2538afb3ff57a51234062b72e33e42249b1",
        }
    ),
    "RotaryTable": frozenset(
        {
            "684916827a72a04438976ae15400c26a4ee05274fbb2c404b8ee5e17211065bd",
        }
    ),
}


def check(graph: Graph) -> None:
    """Refuse a graph that asks for anything this engine does not know.

    Raises
    ------
    UnsupportedError
        Names the version, function, body or op.
    """
    _check_versions(graph)
    for function in graph.functions.values():
        _check_function(graph.name, function)
    _check_nodes(graph, graph.nodes)


def _check_versions(graph: Graph) -> None:
    if graph.ir_version != IR_VERSION:
        raise UnsupportedError(
            f"{graph.name}: got IR version {graph.ir_version}; want {IR_VERSION}; {UPDATE}"
        )
    for domain, version in graph.opsets.items():
        want = OPSETS.get(domain)
        if version != want:
            name = domain or "ai.onnx"
            raise UnsupportedError(
                f"{graph.name}: got version {version} of {name!r}; want {want}; {UPDATE}"
            )


def _check_function(where: str, function: Function) -> None:
    known = BODIES.get(function.name) if function.domain == DOMAIN else None
    if known is None:
        name = f"{function.domain}.{function.name}"
        raise UnsupportedError(f"{where}: unknown function {name!r}; {UPDATE}")
    if function.sha256 not in known:
        raise UnsupportedError(
            f"{where}: function {function.name!r} has another body than this engine's "
            f"(sha256 {function.sha256[:16]}…); {UPDATE}"
        )


def _check_nodes(graph: Graph, nodes: Iterable[Node]) -> None:
    for node in nodes:
        known = node.op in GLUE if not node.domain else node.domain == DOMAIN
        if not known:
            name = f"{node.domain}.{node.op}" if node.domain else node.op
            raise UnsupportedError(f"{graph.name}: {node.name!r}: unknown op {name!r}; {UPDATE}")
        if node.domain == DOMAIN and node.op not in graph.functions:
            raise UnsupportedError(
                f"{graph.name}: {node.name!r}: function {node.op!r} has no body; {UPDATE}"
            )
