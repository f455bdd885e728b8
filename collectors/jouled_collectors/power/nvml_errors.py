"""What NVML's return codes mean for a device and for the source as a whole."""

import pynvml

from jouled.model.errors import SourceError, SourceState

SOURCE_GONE = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
"""No call on any device can succeed any more."""

DEVICE_LOST = frozenset(
    {
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_GPU_NOT_FOUND,
    }
)
"""This device is gone until it is reset; the others go on."""

UNSUPPORTED = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})
"""The device, or a driver this old, will never answer this call."""

NEEDS_NEW_HANDLE = (
    DEVICE_LOST
    | UNSUPPORTED
    | {pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_UNKNOWN}
)
"""Asking once more soon does not help: a reset may have taken the handle along."""


_GPU_LOST = (
    SourceState.DOWN,
    "gpu_lost",
    "No GPU answers: all are lost or need a reset",
    "Look for Xid in `dmesg`, then reset them: nvidia-smi --gpu-reset",
)

_DECISIONS = {
    pynvml.NVML_ERROR_UNINITIALIZED: (SourceState.DOWN, "uninitialized", "NVML was shut down", ""),
    pynvml.NVML_ERROR_NO_PERMISSION: (
        SourceState.DENIED,
        "no_permission",
        "NVML may not be used by this user",
        "Grant read and write on /dev/nvidia*: ls -l /dev/nvidia*; a systemd unit must not set PrivateDevices=yes",
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        SourceState.DOWN,
        "driver_not_loaded",
        "The NVIDIA kernel driver is not loaded",
        "Load it: modprobe nvidia",
    ),
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
        SourceState.ABSENT,
        "library_not_found",
        "No NVIDIA driver here: libnvidia-ml.so.1 is not found",
        "If this node has NVIDIA GPUs, install the driver; in a container set NVIDIA_DRIVER_CAPABILITIES=utility",
    ),
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: (
        SourceState.DOWN,
        "driver_too_old",
        "The NVIDIA driver is too old for the NVML binding",
        "Upgrade the driver",
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        SourceState.DOWN,
        "driver_mismatch",
        "The NVIDIA driver was replaced while its old library is loaded",
        "A new process loads the new library; if the mismatch stays, reload the kernel module or reboot",
    ),
    pynvml.NVML_ERROR_NO_DATA: (SourceState.DOWN, "no_reading", "NVML tells no value", ""),
} | dict.fromkeys(DEVICE_LOST, _GPU_LOST)


def device_error(name: str, error: pynvml.NVMLError) -> SourceError:
    """What an NVML error says of one GPU, while the others go on."""
    if error.value in DEVICE_LOST:
        state, reason, _, mend = _GPU_LOST
        return SourceError(state, reason, f"{name} is lost or needs a reset ({error})", mend=mend)
    if error.value in UNSUPPORTED:
        return SourceError(
            SourceState.ABSENT,
            "no_meter",
            f"{name} tells neither energy nor power ({error})",
            mend="A virtual GPU has no meter: read the node from its host, its BMC or its PDU; to be told no more, name"
            " the other GPUs by `devices` in [power.nvml]",
        )
    state, reason, _, mend = _decision(error)
    return SourceError(state, reason, f"{name} does not answer ({error})", mend=mend)


def source_error(error: pynvml.NVMLError) -> SourceError:
    """The decision that an NVML error carries for the whole source."""
    state, reason, message, mend = _decision(error)
    # The binding leaves the library loaded after nvmlShutdown, so a mismatch never heals in this process.
    fatal = error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    return SourceError(state, reason, message, mend=mend, fatal=fatal)


def _decision(error: pynvml.NVMLError) -> tuple[SourceState, str, str, str]:
    other = (SourceState.DOWN, f"nvml_{error.value}", f"NVML failed: {error}", "")
    return _DECISIONS.get(error.value, other)
