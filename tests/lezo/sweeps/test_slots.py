"""Where the jobs of a sweep run: GPUs by the names they have, cores by their number."""

import pytest
import torch

from lezo.config.schema import ConfigError
from lezo.sweeps import slots
from lezo.sweeps.slots import environments, visible_gpus
from tests.lezo.refusals import refused

AUTO = ["auto"] * 9


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Eight cores, no GPU, nothing set."""
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(slots, "cores", lambda: 8)
    monkeypatch.setattr(slots, "has_driver", lambda: False)
    monkeypatch.setattr(slots, "gpu_count", lambda: pytest.fail("asked torch"))
    return monkeypatch


def with_gpus(machine: pytest.MonkeyPatch, count: int) -> None:
    machine.setattr(slots, "has_driver", lambda: True)
    machine.setattr(slots, "gpu_count", lambda: count)


def test_a_slot_for_each_gpu(machine: pytest.MonkeyPatch) -> None:
    with_gpus(machine, 3)
    assert environments(None, AUTO) == [{"CUDA_VISIBLE_DEVICES": str(i)} for i in range(3)]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments(5, AUTO)] == ["0", "1", "2", "0", "1"]
    assert environments(1, AUTO) == [{"CUDA_VISIBLE_DEVICES": "0"}]
    assert len(environments(None, ["cpu", "cuda"])) == 2


@pytest.mark.parametrize(
    ("given", "count", "names"),
    [
        ("2,0", 2, ["2", "0"]),
        ("GPU-8932f937-d72c, GPU-0aa1", 2, ["GPU-8932f937-d72c", "GPU-0aa1"]),
        ("MIG-1234", 1, ["MIG-1234"]),
        ("1,9,0", 1, ["1"]),  # CUDA stops at the first it does not know
        ("0", 0, []),
    ],
)
def test_what_the_user_made_visible_stays(
    given: str, count: int, names: list[str], machine: pytest.MonkeyPatch
) -> None:
    with_gpus(machine, count)
    machine.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == names


@pytest.mark.parametrize("given", ["", "-1"])
def test_where_the_user_hides_all_gpus_torch_is_not_asked(given: str, machine: pytest.MonkeyPatch) -> None:
    machine.setattr(slots, "has_driver", lambda: True)
    machine.setenv("CUDA_VISIBLE_DEVICES", given)
    assert environments(None, AUTO) == [{}]


def test_without_a_gpu_one_job_runs_at_a_time_and_torch_is_not_asked(machine: pytest.MonkeyPatch) -> None:
    assert environments(None, AUTO) == [{}]


def test_jobs_on_the_cpu_need_no_gpu(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(slots, "has_driver", lambda: True)
    assert environments(None, ["cpu", "cpu"]) == [{}]


def test_slots_share_the_cores_unless_the_user_decided(machine: pytest.MonkeyPatch) -> None:
    assert environments(3, AUTO) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert environments(9, AUTO) == [{"OMP_NUM_THREADS": "1"}] * 9
    assert environments(8, ["auto"] * 2) == [{"OMP_NUM_THREADS": "4"}] * 2  # no more slots than jobs
    machine.setenv("OMP_NUM_THREADS", "5")
    assert environments(3, AUTO) == [{}] * 3


def test_a_job_of_several_gpus_has_them_to_itself(machine: pytest.MonkeyPatch) -> None:
    with_gpus(machine, 5)
    shares = [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    assert environments(None, AUTO, 2) == shares  # and the fifth has nothing to do
    assert environments(3, AUTO, 2) == [*shares, shares[0]]
    with refused(ConfigError, "sweep.gpus_per_job=6", "5 GPUs are visible"):
        environments(None, AUTO, 6)


def test_ranks_without_a_gpu_share_the_cores(machine: pytest.MonkeyPatch) -> None:
    assert environments(2, AUTO, 2) == [{"OMP_NUM_THREADS": "2"}] * 2


def test_a_sweep_with_nothing_to_do_needs_no_slots(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(slots, "has_driver", lambda: True)
    assert environments(None, []) == environments(4, []) == []


def test_torch_is_asked_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(slots.COUNT)  # here, where torch is imported already
    assert int(capsys.readouterr().out) == torch.cuda.device_count()
    monkeypatch.setattr(slots, "COUNT", "print('a warning'); print(3)")
    assert slots.gpu_count() == 3
    for broken in ("import no_such_module", "print('none')"):
        monkeypatch.setattr(slots, "COUNT", broken)
        assert slots.gpu_count() == 0
