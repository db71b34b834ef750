"""The child process that compiles: the only module that imports jax, and its internals at that, which move between releases.

    python -m tpu_train.preflight.libtpu MODULE TOPOLOGY FOLDER EXTENT

reads StableHLO text and writes FOLDER/result.json, and FOLDER/module.hlo where it compiles. A process of its own, because a
defect of the compiler ends the process, because a compile cannot be interrupted otherwise, and because libtpu and TensorFlow,
with a compiler each, are better not loaded together. Needs no TPU and no network.

The compiler optimises, gives every buffer its place in HBM, refuses what does not fit there, and only then generates code, which
takes four fifths of the time and more. EXTENT says how far to go: WHOLE or PLACED. At each stage it leaves reports in a folder
(`--xla_dump_to`), from which the size of HBM's layout is read, and by whose coming the end of a stage is known.

result.json holds what the compiler measured, or its own words:

    {"seconds": 1.4, "placed_bytes": ..., "argument_bytes": ..., "output_bytes": ..., "alias_bytes": ..., "code_bytes": ...,
     "flops": ...}
    {"seconds": 0.4, "placed_bytes": ...}
    {"seconds": 0.1, "error": "RESOURCE_EXHAUSTED: ...", "op": "model/top_k", "largest": {"op": ..., "type": ..., "bytes": ...}}
"""

import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

RESULT, MODULE = "result.json", "module.hlo"
WHOLE, PLACED = "whole", "placed"  # extents: to the end; until memory is laid out and found to suffice
_REPORTS = "reports"  # folder of the compiler's
_MEMORY_REPORT = "*-memory-usage-report.txt"
_FITS = "*_after_buffer_assignment.txt"  # written once all buffers have their place and HBM holds them, seen with libtpu 0.0.42
_ANSWERED = threading.Lock()  # never given back
_HBM = re.compile(r"^Memory Space: default \(color=0\)\nTotal bytes: (\d+) ", re.MULTILINE)

# What a user has set for JAX, XLA or a real TPU must not change what is compiled here: the same module gives the same answer.
_FOREIGN = ("JAX_", "LIBTPU_", "PJRT_", "TPU_", "XLA_")
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # no question to the metadata server of a Google machine
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # a word is wanted, whatever the topology
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",  # otherwise log files in the machine's temporary folder
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # otherwise /tmp/libtpu_lockfile refuses a second child, or one beside a training run
}
# On v4 the two cores of a chip work as one device when asked; v5p does so of itself, v2 and v3 cannot.
_OPTIONS: dict[str, dict[str, Any]] = {"v4": {"chip_config_name": "megacore"}}
_PLAIN_WORDS = {"call", "case", "custom_call", "func", "module", "return"}  # kinds of operation that a message may use as words
_KEPT = frozenset(
    {
        "batch_norm_training",
        "convolution",
        "dot",
        "dot_general",
        "gather",
        "reduce_window",
        "scatter",
        "select_and_scatter",
        "sort",
    }
)  # results that are written to memory; others are mostly parts of a fusion
_HLO_NAME = re.compile(r"[\w\-]+\.\d+")  # "add.6006": a name of XLA's own, not a TensorFlow op's


def prepare(environ: MutableMapping[str, str]) -> None:
    """Sets what libtpu reads when it is loaded; changes `environ` in place."""
    for name in [name for name in environ if name.startswith(_FOREIGN)]:
        del environ[name]
    environ.update(_ENVIRONMENT)


def compile_module(path: str, topology: str, reports: Path) -> tuple[dict[str, Any], str]:
    """Compiles a module for one device of a topology, to the end.

    Args:
      path: of StableHLO text.
      topology: "v5e:2x2".
      reports: folder for those of the compiler.

    Returns:
      What goes into result.json, and the compiled module's text, "" if it does not compile.
    """
    # After `prepare`, which must come before libtpu is loaded.
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies
    from jaxlib import _jax
    from jaxlib.mlir import ir

    options = _OPTIONS.get(topology.partition(":")[0], {})
    device: Any = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices[0]
    how = compiler.get_compile_options(num_replicas=1, num_partitions=1)
    how.executable_build_options.debug_options.xla_dump_to = str(reports)
    how.executable_build_options.debug_options.xla_dump_hlo_as_text = True
    begun = time.monotonic()
    with mlir.make_ir_context():
        try:
            module = ir.Module.parse(Path(path).read_bytes())
        except ir.MLIRError as error:
            return {"seconds": time.monotonic() - begun, "error": str(error), "op": "", "largest": None}, ""
        drop_copies(module.body)
        try:
            executable = device.client.compile(module, _jax.DeviceList((device,)), how)
        except JaxRuntimeError as error:
            text = str(error)
            seconds = time.monotonic() - begun
            return {"seconds": seconds, "error": text, "op": _suspect(module, text), "largest": _largest(module)}, ""
    seconds = time.monotonic() - begun
    memory = executable.get_compiled_memory_stats()
    cost = executable.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return {
        "seconds": seconds,
        "placed_bytes": placed_bytes(reports),
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "flops": cost.get("flops", 0.0),
    }, executable.hlo_modules()[0].to_string()


def placed_bytes(reports: Path) -> int:
    """Bytes of HBM that the compiler's layout takes, the number that it holds against what there is.

    Arguments, results and temporaries are in it, and the gaps between them. The executable's own count of temporaries is larger:
    by as much as the gaps take, where that was looked into. It seems to count them twice.

    Raises:
      RuntimeError: there is no whole report; the compiler goes on without a word where it cannot write one.
    """
    for report in reports.glob(_MEMORY_REPORT):
        if found := _HBM.search(report.read_text()):
            return int(found[1])
    raise RuntimeError("its report of HBM is missing, probably because the folder for temporary files is full: TMPDIR says where")


def _end_when_placed(folder: Path) -> None:
    """Ends this process, with the answer written, when the compiler has found that HBM holds the module."""
    begun = time.monotonic()
    while not any((folder / _REPORTS).glob(_FITS)):
        time.sleep(0.2)
    _answer(folder, {"seconds": time.monotonic() - begun, "placed_bytes": placed_bytes(folder / _REPORTS)}, "")
    os._exit(0)


def _answer(folder: Path, result: dict[str, Any], text: str) -> None:
    """Writes what there is to say; once, as both threads may come to it. The second one waits for the end of the process."""
    _ANSWERED.acquire()
    (folder / MODULE).write_text(text)
    (folder / RESULT).write_text(json.dumps(result))


def drop_copies(block: Any) -> None:
    """Takes out mhlo.copy: TensorFlow puts it at the results, StableHLO has no such operation, and it is an identity."""
    for operation in list(block.operations):
        for region in operation.regions:
            for inner in region.blocks:
                drop_copies(inner)
        if operation.operation.name == "mhlo.copy":
            operation.operation.results[0].replace_all_uses_with(operation.operation.operands[0])
            operation.operation.erase()


def _walk(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation.operation
        for region in operation.regions:
            for inner in region.blocks:
                yield from _walk(inner)


def _name(operation: Any) -> str:
    """The TensorFlow op that an operation comes from, "" if it does not say."""
    location = operation.location
    for part in getattr(location, "locations", [location]):
        name = getattr(part, "name_str", "")
        if name and not _HLO_NAME.fullmatch(name):
            return str(name)
    return ""


def _suspect(module: Any, error: str) -> str:
    """The TensorFlow op of the first operation that the compiler's words speak of: a custom call's target, or a kind ("FFT")."""
    words = set(re.findall(r"\w+", error))
    kinds = {word.lower() for word in words} - _PLAIN_WORDS
    for operation in _walk(module.body):
        kind = operation.name.partition(".")[2]
        target = str(operation.attributes["call_target_name"]).strip('"') if kind == "custom_call" else ""
        if (target in words or kind in kinds) and (name := _name(operation)):
            return name
    return ""


def _largest(module: Any) -> dict[str, Any] | None:
    """The largest array of the module as it came, before operations are fused, among those that a TensorFlow op made.

    Of operations whose results are kept where there are any: what is computed element by element is mostly never written.
    """
    kept = [operation for operation in _walk(module.body) if operation.name.partition(".")[2] in _KEPT]
    return _largest_of(kept) or _largest_of(_walk(module.body))


def _largest_of(operations: Iterable[Any]) -> dict[str, Any] | None:
    from jaxlib.mlir import ir

    best: dict[str, Any] | None = None
    for operation in operations:
        for result in operation.results:
            if not isinstance(result.type, ir.RankedTensorType) or not result.type.has_static_shape:
                continue
            size = _bits(result.type.element_type) // 8
            for side in result.type.shape:
                size *= side
            if (best is None or size > best["bytes"]) and (name := _name(operation)):
                best = {"op": name, "type": f"{result.type.element_type}{list(result.type.shape)}", "bytes": size}
    return best


def _bits(element: Any) -> int:
    """Bits of an element, 8 at least: a boolean takes a byte."""
    if hasattr(element, "width"):
        return max(8, int(element.width))
    if hasattr(element, "element_type"):  # a complex number
        return 2 * _bits(element.element_type)
    return 8


def end_with_parent(folder: str | None = None) -> None:
    """Has this process end when the one that started it is gone: minutes of work would go on for nobody.

    Args:
      folder: of files between the two, which is then removed.
    """
    threading.Thread(target=_end_without, args=(os.getppid(), folder), daemon=True).start()


def _end_without(parent: int, folder: str | None) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def main(argv: list[str]) -> int:
    """Compiles `argv[0]` for `argv[1]` and writes into the folder `argv[2]`; as far as `argv[3]` says."""
    path, topology, folder, extent = argv[0], argv[1], Path(argv[2]), argv[3]
    end_with_parent(argv[2])
    if extent == PLACED:
        threading.Thread(target=_end_when_placed, args=(folder,), daemon=True).start()
    prepare(os.environ)
    _answer(folder, *compile_module(path, topology, folder / _REPORTS))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
