"""Every end has words: what is wrong, and what to do."""

import pytest

from bedsit.supervisor.devices import faults
from bedsit.supervisor.devices.reports import Refusal
from bedsit.supervisor.devices.xids import explain_xid


@pytest.mark.parametrize("code", [-1, *range(1, 31), 999, 12345])
def test_every_error_of_nvml_has_words(code: int) -> None:
    """Those that nobody knows, too; about the box they say that there are cores only."""
    refusal = Refusal(code, "nvmlInit", "Some Words")
    for trouble in (faults.explain_box(refusal), faults.explain_gpu(refusal)):
        assert trouble.what
        assert trouble.mend
        assert "\n" not in trouble.what + trouble.mend
    assert faults.explain_box(refusal).what.endswith("cores only")


def test_what_is_not_known_is_taken_for_the_gpus_fault() -> None:
    """A tenant is sooner kept away from a card that would have served it."""
    assert explain_xid(31).breaks is False
    assert explain_xid(79).breaks is True
    assert explain_xid(4711).breaks is True
    assert explain_xid(4711).meaning
