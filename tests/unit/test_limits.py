"""How much memory there is: what a container, a cluster's job or ulimit leaves of the machine's."""

import resource

import pytest

from fedjax_sim import _feed
from fedjax_sim._src.limits import process_bytes

GB = 10**9


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """Writes files below a root of its own; without them, and without limits of the process, the machine alone counts."""
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def write(groups: str, **limits: str):
        for name, text in {"proc/self/cgroup": groups, **limits}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def files(**limits: int | str) -> dict[str, str]:
    return {f"sys/fs/cgroup/{name}": f"{limit}\n" for name, limit in limits.items()}


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": 3 * GB // 1000}, 3 * GB // 1000),
        ("0::/job/step\n", {"job/step/memory.max": "max", "job/memory.max": 10**6}, 10**6),
        ("0::/job/step\n", {"job/step/memory.max": 10**6, "job/memory.max": 2 * 10**6}, 10**6),
        ("0::/of/the/machine\n", {"memory.max": 10**6}, 10**6),
        ("0::/../other\n", {"memory.max": 10**6}, 10**6),
        ("9:cpu,memory:/a\n1:cpu:/\n", {"memory/a/memory.limit_in_bytes": 10**6}, 10**6),
        ("9:memory:/a\n", {"memory/memory.limit_in_bytes": 10**6, "memory/a/memory.limit_in_bytes": 2**63 - 4096}, 10**6),
        ("0::/\n", {"memory.max": "max"}, None),
        ("9:cpu:/\n", {"memory/memory.limit_in_bytes": 10**6}, None),
        ("nonsense", {"memory.max": "nonsense"}, None),
    ],
)  # fmt: skip
def test_control_groups_limit_it(linux, tmp_path, groups, limits, expected):
    machine = process_bytes(tmp_path / "nowhere")
    assert machine is not None and machine > GB
    assert process_bytes(linux(groups, **files(**limits))) == (expected or machine)


@pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_limits_of_the_process(tmp_path, monkeypatch, kind):
    infinite = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda k: (10**6 if k == kind else infinite, infinite))
    assert process_bytes(tmp_path) == 10**6


def test_where_client_state_lies_is_decided_by_it(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (10**6, 10**6))
    assert _feed.host_bytes() == _feed.device_bytes() == 10**6  # on CPU the host is the device
