"""Wakes the GPU's driver while Python still imports torch.

The first call into the driver of a process takes from a tenth of a second to seconds (longest where nothing else holds
the GPU, so that it is powered up for this), needs no Python, and would else come after a second of imports that leave
the GPU alone. Nothing is allocated on the device: a process that then computes on the CPU holds no memory there.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading


def wake() -> threading.Thread:
    """Starts to; the thread ends when the driver is awake, or at once where there is none."""
    thread = threading.Thread(target=_initialise, name="cuda-driver", daemon=True)
    thread.start()
    return thread


def _initialise() -> None:
    with contextlib.suppress(OSError, AttributeError):  # no driver: whoever needs one says so later
        ctypes.CDLL("libcuda.so.1").cuInit(0)
