"""Boards and phones that people train on: memory by their makers' data sheets, what the system takes as somebody measured it.

Where nobody's measurement was found, the figure is derived or assumed, and its source says so: measure your own device (`free -b` on it,
`memory − available`) and post it. The runtime is Python 3.11 with torch 2.13.0 for CPUs and memfit, as `certificate.runtime_bytes` shows
it: 218 MiB, measured by memfit on x86-64. CUDA takes several hundred MiB more.
"""

from dataclasses import dataclass

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True, slots=True)
class Preset:
    """A device.

    Attributes:
        system_bytes: memory less what a fresh system has available.
    """

    id: str
    name: str
    memory_bytes: int
    memory_source: str
    system_bytes: int
    system_source: str

    @property
    def budget_bytes(self) -> int:
        """What a training step may have."""
        return self.memory_bytes - self.system_bytes - RUNTIME_BYTES


RUNTIME_BYTES = 218 * MIB
RUNTIME_SOURCE = "measured by memfit: Python 3.11 with torch 2.13.0 for CPUs, on x86-64, before a model is loaded"

_PI = "https://datasheets.raspberrypi.com"
_LITE_BYTES = 221 * MIB  # 512 MiB less 291.6 available
_LITE = "https://docs.printercow.com/guide/32bit-vs-64bit.html: 291.6 MiB available of 512 after boot, 64-bit Raspberry Pi OS Lite"
_AS_LITE = f"derived from the Zero 2 W with the same system ({_LITE})"
_JETSON = "https://developer.nvidia.com/embedded/jetson-modules"
_ORIN = "https://edgeaistack.app/engines/memory-estimator: 1.5 to 2 GB of an 8 GB Orin Nano before anything runs"
_CORAL = "https://docslib.org/doc/11229095/datasheet-version-1-11: System-on-Module datasheet 1.11, 1, 2 or 4 GB LPDDR4"
_MENDEL = "assumed as Raspberry Pi OS Lite, since Mendel is a Debian without a desktop as well"
_PHONE = "assumed: half. Android shows apps 5.4 of 6 GB (https://android.googlesource.com/platform/cts/+/2eb3ee274d2) and ends large ones"

PRESETS = (
    Preset(
        "raspberry-pi-zero-2-w",
        "Raspberry Pi Zero 2 W",
        512 * MIB,
        f"{_PI}/rpizero2/raspberry-pi-zero-2-w-product-brief.pdf",
        _LITE_BYTES,
        _LITE,
    ),
    Preset(
        "raspberry-pi-3b-plus", "Raspberry Pi 3 Model B+", GIB, f"{_PI}/rpi3/raspberry-pi-3-b-plus-product-brief.pdf", _LITE_BYTES, _AS_LITE
    ),
    Preset(
        "raspberry-pi-4b-2gb", "Raspberry Pi 4 Model B, 2 GB", 2 * GIB, f"{_PI}/rpi4/raspberry-pi-4-datasheet.pdf", _LITE_BYTES, _AS_LITE
    ),
    Preset(
        "raspberry-pi-4b-4gb", "Raspberry Pi 4 Model B, 4 GB", 4 * GIB, f"{_PI}/rpi4/raspberry-pi-4-datasheet.pdf", _LITE_BYTES, _AS_LITE
    ),
    Preset("raspberry-pi-5-4gb", "Raspberry Pi 5, 4 GB", 4 * GIB, f"{_PI}/rpi5/raspberry-pi-5-product-brief.pdf", _LITE_BYTES, _AS_LITE),
    Preset("raspberry-pi-5-8gb", "Raspberry Pi 5, 8 GB", 8 * GIB, f"{_PI}/rpi5/raspberry-pi-5-product-brief.pdf", _LITE_BYTES, _AS_LITE),
    Preset("jetson-nano-4gb", "NVIDIA Jetson Nano, 4 GB", 4 * GIB, _JETSON, 2 * GIB, f"assumed as the Orin Nano, at most ({_ORIN})"),
    Preset("jetson-orin-nano-4gb", "NVIDIA Jetson Orin Nano, 4 GB", 4 * GIB, _JETSON, 2 * GIB, f"assumed as the one of 8 GB ({_ORIN})"),
    Preset("jetson-orin-nano-8gb", "NVIDIA Jetson Orin Nano, 8 GB", 8 * GIB, _JETSON, 2 * GIB, _ORIN),
    Preset("coral-dev-board-1gb", "Coral Dev Board, 1 GB", GIB, _CORAL, _LITE_BYTES, _MENDEL),
    Preset("coral-dev-board-4gb", "Coral Dev Board, 4 GB", 4 * GIB, _CORAL, _LITE_BYTES, _MENDEL),
    Preset(
        "phone-6gb",
        "A phone with Android and 6 GB, such as the Pixel 6a",
        6 * GIB,
        "https://store.google.com/product/pixel_6a_specs",
        3 * GIB,
        _PHONE,
    ),
    Preset(
        "phone-8gb",
        "A phone with Android and 8 GB, such as the Pixel 8",
        8 * GIB,
        "https://store.google.com/product/pixel_8_specs",
        4 * GIB,
        _PHONE,
    ),
)
