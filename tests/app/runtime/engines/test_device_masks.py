"""Devices by the environment of a process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.app.runtime.engines.device_masks import devices_by_mask
from jouled.model.device import Device, DeviceKind


def gpus(vendor: str = "nvidia", products: tuple[str, ...] = ("H100",) * 4) -> list[Device]:
    return [
        Device(
            name=f"gpu{number}",
            kind=DeviceKind.GPU,
            vendor=vendor,
            product=product,
            uuid=f"GPU-{number}a7e{number:04}-0000",
            pci_bus_id=f"00000000:{number:02x}:00.0",
        )
        for number, product in enumerate(products)
    ]


MIG = Device(
    name="gpu0-gi1-ci0", kind=DeviceKind.PARTITION, parent="gpu0", vendor="nvidia", uuid="MIG-77aa", fraction=0.5
)
NVIDIA = [*reversed(gpus()), Device(name="package0", kind=DeviceKind.CPU_PACKAGE)]
WITH_MIG = [*NVIDIA, MIG]


def masked(devices=NVIDIA, *, in_container: bool = False, **environ: str) -> tuple[str, ...]:
    return devices_by_mask(environ, devices, in_container=in_container)


@pytest.mark.parametrize(
    ("mask", "devices"),
    [
        ("0", ("gpu0",)),
        ("2,1", ("gpu2", "gpu1")),
        (" 3 , 0", ("gpu3", "gpu0")),
        ("GPU-2a7e0002-0000", ("gpu2",)),
        ("GPU-1a,GPU-3a", ("gpu1", "gpu3")),
        ("1,9,2", ("gpu1",)),
        ("1,1", ("gpu1",)),
        ("-1", ()),
        ("1,-1,2", ("gpu1",)),
        ("", ()),
        ("GPU-", ()),
        ("NoDevFiles", ()),
        ("99999999999999999999", ()),
    ],
)
def test_cuda_counts_along_the_bus_and_ends_at_what_is_not_there(mask, devices):
    assert masked(CUDA_VISIBLE_DEVICES=mask) == devices


def test_where_a_device_is_partitioned_numbers_count_partitions_in_an_unknown_order():
    assert masked(WITH_MIG, CUDA_VISIBLE_DEVICES="MIG-77aa") == ("gpu0-gi1-ci0",)
    assert masked(WITH_MIG, CUDA_VISIBLE_DEVICES="1") == ()
    assert masked(WITH_MIG, in_container=True, NVIDIA_VISIBLE_DEVICES="2,3", CUDA_VISIBLE_DEVICES="1") == ("gpu3",)
    assert masked(WITH_MIG, in_container=True, NVIDIA_VISIBLE_DEVICES="0") == ("gpu0",)
    amd = gpus("amd", ("MI300X",) * 2)
    parts = [Device(name=f"gpu0-p{n}", kind=DeviceKind.PARTITION, parent="gpu0", vendor="amd") for n in range(2)]
    assert masked([*amd, *parts], HIP_VISIBLE_DEVICES="1") == (), "the second half of the first device, not the second"


def test_without_a_mask_nothing_is_told():
    assert masked() == ()
    assert masked(HIP_VISIBLE_DEVICES="0") == (), "no AMD device is here"


def test_among_unequal_devices_numbers_need_the_order_of_the_bus():
    mixed = gpus(products=("T4", "H100"))
    assert masked(mixed, CUDA_VISIBLE_DEVICES="0") == ()
    assert masked(mixed, CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="PCI_BUS_ID") == ("gpu0",)
    assert masked(mixed, CUDA_VISIBLE_DEVICES="GPU-1a7e") == ("gpu1",)


def test_in_a_container_numbers_count_among_the_devices_that_it_was_given():
    given_two = {"NVIDIA_VISIBLE_DEVICES": "2,3", "CUDA_VISIBLE_DEVICES": "1"}
    assert masked(in_container=True, **given_two) == ("gpu3",)
    assert masked(**given_two) == ("gpu1",), "outside of one the runtime's variable has no effect"
    assert masked(in_container=True, NVIDIA_VISIBLE_DEVICES="2,3") == ("gpu2", "gpu3")
    assert masked(in_container=True, NVIDIA_VISIBLE_DEVICES="all", CUDA_VISIBLE_DEVICES="1") == ("gpu1",)
    assert masked(in_container=True, NVIDIA_VISIBLE_DEVICES="void", CUDA_VISIBLE_DEVICES="1") == ()
    assert masked(in_container=True, CUDA_VISIBLE_DEVICES="1") == ()
    assert masked(in_container=True, CUDA_VISIBLE_DEVICES="GPU-1a7e") == ("gpu1",)


def test_hip_counts_among_what_rocr_leaves():
    amd = gpus("amd", ("MI300X",) * 4)
    assert masked(amd, ROCR_VISIBLE_DEVICES="1,3") == ("gpu1", "gpu3")
    assert masked(amd, ROCR_VISIBLE_DEVICES="1,3", HIP_VISIBLE_DEVICES="1") == ("gpu3",)
    assert masked(amd, CUDA_VISIBLE_DEVICES="2") == ("gpu2",)
    mixed = gpus("amd", ("MI300X", "MI210"))
    named = {"ROCR_VISIBLE_DEVICES": "GPU-1a7e,GPU-0a7e", "HIP_VISIBLE_DEVICES": "0"}
    assert masked(mixed, **named) == ("gpu1",), "numbers count along the outer mask, whatever the order of the bus"
    assert masked(amd, HIP_VISIBLE_DEVICES="0", CUDA_VISIBLE_DEVICES="2") == ("gpu0",)
    assert masked(amd, ROCR_VISIBLE_DEVICES="GPU-3a7e0003-0000") == ("gpu3",)
    assert masked(amd, in_container=True, HIP_VISIBLE_DEVICES="0") == ()


@given(st.text(), st.text(), st.booleans())
def test_any_mask_is_read(outer, inner, in_container):
    found = masked(WITH_MIG, in_container=in_container, NVIDIA_VISIBLE_DEVICES=outer, CUDA_VISIBLE_DEVICES=inner)
    assert set(found) <= {device.name for device in WITH_MIG}
    assert len(set(found)) == len(found)
