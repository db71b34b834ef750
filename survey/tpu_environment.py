"""What the environment must say before TensorFlow is imported, so that it finds a TPU. No TensorFlow here."""

import glob
import importlib.util
import os
from collections.abc import MutableMapping

# A Cloud TPU VM shows its chips as one of these, by generation.
CHIPS = ("accel*", "vfio/[0-9]*")


def prepare(environ: MutableMapping[str, str], *, devices: str = "/dev", library: str | None = None) -> None:
    """Sets what TensorFlow reads once, when it is imported; what the user has set stays as it is.

    Chips of this machine are reached through PJRT. A TPU that TPU_NAME names, such as a pod, is reached over the network from its
    worker 0, which then must not load the library itself: it would take the chips away from the server that drives them.

    Args:
      environ: `os.environ`, or a mapping like it; changed in place.
      devices: folder in which the machine shows its devices.
      library: path of libtpu.so; by default that of the installed package, if there is one.
    """
    if is_named(environ):
        environ.setdefault("TPU_LOAD_LIBRARY", "0")
        return
    library = library or _installed_library()
    if library is None or not any(glob.glob(os.path.join(glob.escape(devices), pattern)) for pattern in CHIPS):
        return
    environ.setdefault("PJRT_DEVICE", "TPU")
    environ.setdefault("NEXT_PLUGGABLE_DEVICE_USE_C_API", "true")
    environ.setdefault("TF_PLUGGABLE_DEVICE_LIBRARY_PATH", library)


def is_named(environ: MutableMapping[str, str]) -> bool:
    """Whether the user names a TPU that is not simply this machine's."""
    return environ.get("TPU_NAME", "") not in ("", "local")


def _installed_library() -> str | None:
    found = importlib.util.find_spec("libtpu")
    folders = (found.submodule_search_locations or []) if found else []
    paths = [os.path.join(folder, "libtpu.so") for folder in folders]
    return next((path for path in paths if os.path.exists(path)), None)
