"""Containers and pods by control groups, as the runtimes name them."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.app.runtime.engines.containers import Container, container_of, parse_cgroup

ID = "3f2a9c" + 58 * "7"
OTHER = "abcdef" + 58 * "1"
UID = "0f3d2c1b-aaaa-bbbb-cccc-0123456789ab"
SLICE = UID.replace("-", "_")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"0::/system.slice/docker-{ID}.scope\n", Container(ID)),
        (f"12:cpu,cpuacct:/docker/{ID}\n11:memory:/docker/{ID}\n0::/\n", Container(ID)),
        (
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE}.slice/cri-containerd-{ID}.scope\n",
            Container(ID, UID),
        ),
        (f"0::/kubepods/besteffort/pod{UID}/{ID}\n", Container(ID, UID)),
        (f"0::/../../kubepods/pod{UID}/{ID}/init.scope", Container(ID, UID)),
        (f"0::/machine.slice/libpod-{ID}.scope/container\n", Container(ID)),
        (f"0::/kubepods.slice/kubepods-pod{SLICE}.slice/crio-{ID}.scope\n", Container(ID, UID)),
        (f"0::/system.slice/docker-{OTHER}.scope/docker/{ID}\n", Container(ID)),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", None),
        (f"0::/user.slice/{ID[:40]}\n", None),
        ("0::/\n", None),
        ("", None),
    ],
)
def test_a_container_is_told_by_its_control_group(text, found):
    assert parse_cgroup(text) == found


def test_it_is_shown_as_the_tools_of_its_runtime_show_it():
    assert str(Container(ID)) == "container 3f2a9c777777"
    assert str(Container(ID, UID)) == f"container 3f2a9c777777 of pod {UID}"


@given(st.text())
def test_any_text_is_read(text):
    parse_cgroup(text)


def test_a_process_that_is_gone_is_in_none():
    assert container_of(2**22 + 1) is None
    container_of(os.getpid())
