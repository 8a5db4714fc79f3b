"""What ``luma doctor`` says of offloading: measured links, and what ``offload="auto"`` compares."""

from __future__ import annotations

from typing import Any


def measured() -> dict[str, Any]:
    """Measure what ``offload="auto"`` chooses by, for each CUDA device.

    Returns:
        ``host_bytes``, what the host can still give; ``cpu_elements_per_second`` of a step on the
        CPU, ``None`` without a device; ``devices``, a dict each: free memory, and bytes per second
        of the link to the device, to the host, and each way with both at once.
    """
    import torch

    from luma_core.optim.offload.choice import machine_of
    from luma_core.optim.offload.host_memory import available_host_bytes

    devices = []
    steps: float | None = None
    for index in range(torch.cuda.device_count()):
        machine = machine_of(torch.device("cuda", index))
        steps = machine.steps_per_second
        devices.append(
            {
                "device": f"cuda:{index}",
                "free_bytes": machine.device_bytes,
                "to_device_bytes_per_second": machine.link.to_device,
                "to_host_bytes_per_second": machine.link.to_host,
                "both_bytes_per_second": machine.link.both,
            }
        )
    return {
        "host_bytes": available_host_bytes(),
        "cpu_elements_per_second": steps,
        "devices": devices,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Return what to print of what `measured` found."""
    from luma_client.console.formats import bytes_text
    from luma_core.optim.offload.choice import HOST_SHARE, RESIDENT_SHARE

    host = f"{bytes_text(found['host_bytes'])} of the host's memory are free"
    if not found["devices"]:
        return [
            "no CUDA device: state lies beside the parameters, and offload='disk' takes what "
            f"memory does not; {host}"
        ]
    text = []
    for device in found["devices"]:
        rates = [
            bytes_text(int(device[f"{way}_bytes_per_second"]))
            for way in ("to_device", "to_host", "both")
        ]
        resident = bytes_text(int(RESIDENT_SHARE * device["free_bytes"]))
        text.append(
            f"{device['device']}: {rates[0]}/s to it, {rates[1]}/s from it, {rates[2]}/s each way "
            f"at once; offload='auto' leaves up to {resident} of state on it"
        )
    most = bytes_text(int(HOST_SHARE * found["host_bytes"]))
    text.append(
        f"the CPU steps {found['cpu_elements_per_second'] / 1e9:.2f}e9 elements a second; {host}, "
        f"of which offload='auto' gives {most} to state"
    )
    return text
