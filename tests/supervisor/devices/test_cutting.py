"""GPUs are cut as declared, or it is said why not and nothing is left half: real binding, real helper process."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bedsit.ipc.errors import BedsitError
from bedsit.supervisor.devices.partitions.keeper import Outcome
from bedsit.supervisor.devices.partitions.plan import GpuPlan
from bedsit.supervisor.devices.partitions.refusals import make_token
from bedsit.supervisor.devices.watch import Uncut
from bedsit.supervisor.placement.geometry import Placed
from tests_support.nvml.cards import A30, A100, B200, H100, H200, Card
from tests_support.nvml.library import FakeGpu, FakeInstance, FakeNvml

Watch = Callable[..., None]
PAIR = {"0": ["3g.40gb@4", "1g.10gb"]}


@pytest.fixture
def card(nvml: FakeNvml) -> FakeNvml:
    """An H100 with MIG on and nothing cut."""
    nvml.gpus = [FakeGpu(0, mig=True)]
    nvml.write()
    return nvml


def list_there(watched: Any) -> list[str]:
    """The MIG devices as the inventory has them: profile and first slice."""
    return sorted(f"{part.name.split()[-1]}@{part.placement.start}" for part in watched.slices("mig"))


async def do(watched: Any) -> tuple[Outcome, ...]:
    """Plan and apply, at once."""
    plans = await watched.partitions.look(None)
    _, outcomes = await watched.partitions.apply(None, make_token(plans), lambda _: None)
    assert isinstance(outcomes, tuple)
    return outcomes


def say(plans: tuple[GpuPlan, ...]) -> list[str]:
    """All lines in short."""
    return [f"{line.action} {line.what}" for plan in plans for line in plan.lines]


@pytest.mark.parametrize(
    ("model", "parts", "cuts"),
    [
        (A100, ["1g.5gb", "2g.10gb", "4g.20gb"], {"4g.20gb@0"}),
        (A30, ["2g.12gb@2", "1g.6gb"], {"2g.12gb@2"}),
        (H100, ["3g.40gb", "1g.10gb+me", "1g.20gb"], {"1g.20gb@6"}),
        (H200, ["7g.141gb"], {"7g.141gb@0"}),
        (B200, ["1g.23gb"] * 7, {"1g.23gb@6"}),
    ],
    ids=["A100", "A30", "H100", "H200", "B200"],
)
def test_what_is_declared_is_made_after_a_reboot(
    watch: Watch, nvml: FakeNvml, mig_minors: None, model: Card, parts: list[str], cuts: set[str]
) -> None:
    """On every card, by profile and place; and again when all of it is gone."""
    nvml.gpus = [FakeGpu(0, model, mig=True)]
    nvml.write()

    async def story(watched: Any) -> None:
        await watched.wait(lambda: len(watched.slices("mig")) == len(parts))
        names = [part.split("@")[0] for part in parts]
        assert sorted(each.split("@")[0] for each in list_there(watched)) == sorted(names)
        assert len(nvml.cuts) == 2 * len(parts)
        assert all(part.trouble is None for part in watched.slices("mig"))
        nvml.reboot()  # which forgets the cuts, too; that nothing is there may be over before anybody looks
        await watched.wait(lambda: len(nvml.cuts) == 2 * len(parts))
        await watched.wait(lambda: len(watched.slices("mig")) == len(parts))

    watch(story, declared={"0": parts})


def test_a_tenant_s_seat_is_where_it_was_after_a_reboot(watch: Watch, card: FakeNvml) -> None:
    """What may be anywhere is made where somebody sits, rather than where it would fit first."""

    async def story(watched: Any) -> None:
        await watched.wait(lambda: list_there(watched) == ["1g.10gb@2", "2g.20gb@0"])
        watched.seats[card.gpus[0].uuid, Placed(6, 1, "1g.10gb")] = ("vision",)
        card.reboot()
        await watched.wait(lambda: list_there(watched) == ["1g.10gb@6", "2g.20gb@0"])

    watch(story, declared={"0": ["1g.10gb", "2g.20gb"]})


def test_nothing_is_made_where_that_was_switched_off(watch: Watch, card: FakeNvml) -> None:
    """It is said once, and an operator can have it done."""

    async def story(watched: Any) -> None:
        await watched.wait(lambda: watched.told)
        await watched.devices.wait_round()
        await watched.devices.wait_round()
        ((kind, text),) = watched.told
        assert kind == "device.unpartitioned"
        assert "create_missing is off" in text
        assert card.cuts == []
        outcomes = await do(watched)
        assert [each.state for each in outcomes] == ["done", "done"]
        assert list_there(watched) == ["1g.10gb@0", "3g.40gb@4"]

    watch(story, declared=PAIR, creates_missing=False)


def test_the_daemon_destroys_nothing_by_itself(watch: Watch, card: FakeNvml) -> None:
    """What is idle and in the way stays, and not even the rest is made; an operator who has seen the plan has it go."""
    card.instances = [FakeInstance(0, 0, 1, 14, 4)]
    card.write()

    async def story(watched: Any) -> None:
        await watched.wait(lambda: watched.told)
        assert "2g.20gb in slots 4 to 5 would have to go" in watched.told[0][1]
        await watched.devices.wait_round()
        await watched.devices.wait_round()
        assert card.cuts == []
        outcomes = await do(watched)
        assert [(each.line.action, each.state) for each in outcomes] == [
            ("destroy", "done"),
            ("create", "done"),
            ("create", "done"),
        ]
        assert list_there(watched) == ["1g.10gb@0", "3g.40gb@4"]
        assert card.cuts[:2] == ["-ci 0 1 0", "-gi 0 1"]
        gone = await watched.wait_change("device.gone", "was destroyed")
        assert gone.device == card.instances[0].uuid

    watch(story, declared=PAIR)


def test_what_is_undeclared_and_not_in_the_way_is_left_alone(watch: Watch, card: FakeNvml) -> None:
    """The rest is made beside it."""
    card.instances = [FakeInstance(0, 3, 5, 14, 2)]
    card.write()

    async def story(watched: Any) -> None:
        await watched.wait(lambda: list_there(watched) == ["1g.10gb@0", "2g.20gb@2", "3g.40gb@4"])

    watch(story, declared=PAIR)


@pytest.mark.parametrize("who", ["process", "tenant"])
def test_who_is_in_an_instance_is_never_put_out(watch: Watch, card: FakeNvml, who: str) -> None:
    """Apply refuses before it begins, and names who is in the way; as soon as they have left it does it."""
    card.instances = [FakeInstance(0, 0, 1, 14, 4)]
    if who == "process":
        card.more = ["process 0 4242 1 1"]
    card.write()

    async def story(watched: Any) -> None:
        watched.seats |= {(card.gpus[0].uuid, Placed(4, 2, "2g.20gb")): ("vision",)} if who == "tenant" else {}
        name = "tenant vision" if who == "tenant" else "process 4242"
        assert "keep 2g.20gb in slots 4 to 5" in say(await watched.partitions.look(None))
        with pytest.raises(BedsitError) as refused:
            await do(watched)
        assert refused.value.code == "device.busy"
        assert name in refused.value.message
        assert card.cuts == []
        watched.seats.clear()
        card.more.clear()
        card.write()
        assert {each.state for each in await do(watched)} == {"done"}

    watch(story, declared=PAIR, creates_missing=False)


def test_the_helper_refuses_too_and_destroys_no_half(watch: Watch, card: FakeNvml) -> None:
    """A process that came after the last look keeps its instance whole."""
    card.instances = [FakeInstance(0, 0, 1, 9, 4)]
    card.more = ["process 0 4242 1 1"]
    card.write()

    async def story(watched: Any) -> None:
        with pytest.raises(Uncut) as uncut:
            await watched.devices.cut("destroy", card.gpus[0].uuid, gpu_instance=1, profile=9)
        assert "somebody computes on it" in uncut.value.trouble.what
        assert card.cuts == []

    watch(story)


def test_a_seat_that_was_taken_since_keeps_its_instance(watch: Watch, card: FakeNvml, mig_minors: None) -> None:
    """Between the plan and its turn; and what is being destroyed is of no use to whoever gives out seats."""
    card.instances = [FakeInstance(0, 0, 1, 14, 0), FakeInstance(0, 1, 2, 14, 4)]
    card.write()

    async def story(watched: Any) -> None:
        usable: list[list[bool]] = []

        def progress(text: str) -> None:
            usable.append([part.trouble is None for part in watched.slices("mig")])
            if "slots 4 to 5" in text:
                watched.seats[card.gpus[0].uuid, Placed(4, 2, "2g.20gb")] = ("vision",)

        token = make_token(await watched.partitions.look(None))
        _, outcomes = await watched.partitions.apply(None, token, progress)
        assert [(each.line.action, each.state) for each in outcomes] == [
            ("destroy", "done"),
            ("destroy", "failed"),
            ("create", "not tried"),
        ]
        assert outcomes[1].trouble is not None
        assert "tenant vision has taken it" in outcomes[1].trouble.what
        assert usable == [[True, True], [False, True]]
        assert list_there(watched) == ["2g.20gb@4"]
        assert watched.slices("mig")[0].trouble is None

    watch(story, declared={"0": ["7g.80gb"]}, creates_missing=False)


@pytest.mark.parametrize(
    ("code", "what", "mend"),
    [
        (3, "takes no instances now", "partition plan"),
        (4, "the helper may not cut GPUs", "nvidia-cap1"),
        (15, "the GPU is lost", "reboot"),
        (16, "has to be reset", "nvidia-smi -r"),
        (19, "somebody computes on it", "nvidia-smi"),
        (23, "no room for it", "partition plan"),
        (999, "the driver refuses", "dmesg"),
    ],
)
@pytest.mark.parametrize(
    "function", ["nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceCreateComputeInstance"]
)
def test_what_is_refused_is_explained_and_leaves_no_half(
    watch: Watch, card: FakeNvml, function: str, code: int, what: str, mend: str
) -> None:
    """Every error, in either half; the rest of that GPU is not tried, and done when it works again."""

    async def story(watched: Any) -> None:
        with card.saying(f"fail {function} 0 {code}"):
            first, second = await do(watched)
            assert (first.state, second.state) == ("failed", "not tried")
            assert what in first.trouble.what
            assert mend in first.trouble.mend
            assert function in first.trouble.what
            assert list_there(watched) == []
            assert watched.gpu().bare == ()
        assert {each.state for each in await do(watched)} == {"done"}
        assert list_there(watched) == ["1g.10gb@0", "3g.40gb@4"]

    watch(story, declared=PAIR, creates_missing=False)


def test_a_half_that_cannot_be_undone_is_told_and_finished_later(watch: Watch, card: FakeNvml) -> None:
    """It takes its place until then, and is in the plan."""

    async def story(watched: Any) -> None:
        with card.saying("fail nvmlGpuInstanceCreateComputeInstance 0 23", "fail nvmlGpuInstanceDestroy 0 999"):
            first, _ = await do(watched)
            assert "a GPU instance without a compute instance stays: nvmlGpuInstanceDestroy" in first.trouble.what
            assert [each.gpu_instance for each in watched.gpu().bare] == [1]
            assert say(await watched.partitions.look(None)) == [
                "finish 1g.10gb in slot 0",
                "create 3g.40gb in slots 4 to 7",
            ]
        outcomes = await do(watched)
        assert [each.line.action for each in outcomes] == ["finish", "create"]
        assert list_there(watched) == ["1g.10gb@0", "3g.40gb@4"]

    watch(story, declared=PAIR, creates_missing=False)


def test_a_destruction_that_is_refused_half_way_is_taken_back(watch: Watch, card: FakeNvml) -> None:
    """The compute instance is there again: who was to be destroyed is as usable as before."""
    card.instances = [FakeInstance(0, 0, 1, 14, 4)]
    card.write()

    async def story(watched: Any) -> None:
        with card.saying("fail nvmlGpuInstanceDestroy 0 19"):
            first, *others = await do(watched)
            assert (first.state, first.line.action) == ("failed", "destroy")
            assert {each.state for each in others} == {"not tried"}
            assert list_there(watched) == ["2g.20gb@4"]
            assert card.cuts == ["-ci 0 1 0", "+ci 0 1 0 0 2"]
        with card.saying("fail nvmlGpuInstanceDestroy 0 19", "fail nvmlGpuInstanceCreateComputeInstance 0 23"):
            first, *_ = await do(watched)
            assert "GPU instance 1 stays, without its compute instance" in first.trouble.what
        assert {each.state for each in await do(watched)} == {"done"}

    watch(story, declared=PAIR, creates_missing=False)


@pytest.mark.parametrize(
    ("way", "function"),
    [
        ("hang", "nvmlDeviceCreateGpuInstanceWithPlacement"),
        ("hang", "nvmlGpuInstanceCreateComputeInstance"),
        ("stall", "nvmlDeviceCreateGpuInstanceWithPlacement"),
        ("stall", "nvmlGpuInstanceCreateComputeInstance"),
        ("die", "nvmlGpuInstanceCreateComputeInstance"),
    ],
)
def test_a_driver_that_hangs_or_crashes_in_a_cut_leaves_nothing_for_long(
    watch: Watch, card: FakeNvml, way: str, function: str
) -> None:
    """The call is named, the helper is followed by another, and the next look finds what is left and finishes it."""

    async def story(watched: Any) -> None:
        with card.saying(f"{way} {function} 0"):
            await watched.wait(lambda: any(kind == "device.unpartitioned" for kind, _ in watched.told))
            told = next(text for kind, text in watched.told if kind == "device.unpartitioned")
            assert function in told
            assert ("did not return" if way != "die" else "signal 11") in told
        await watched.wait(lambda: list_there(watched) == ["1g.10gb@0", "3g.40gb@4"])
        assert watched.gpu().bare == ()
        assert watched.gpu().trouble is None

    watch(story, declared=PAIR, call_s=1.0)


def test_a_failure_is_told_once_and_tried_again_later(watch: Watch, card: FakeNvml) -> None:
    """By itself it goes on trying, more and more seldom, and does not fill the ring of events."""

    async def story(watched: Any) -> None:
        with card.saying("fail nvmlDeviceCreateGpuInstanceWithPlacement 0 4"):
            await watched.wait(lambda: watched.partitions._rests and watched.partitions._rests["0"].times >= 3)
            assert len(watched.told) == 1
        await watched.wait(lambda: list_there(watched) == ["1g.10gb@0", "3g.40gb@4"])
        assert watched.partitions._rests == {}

    watch(story, declared=PAIR)


@pytest.mark.parametrize(
    ("gpu", "says", "does"),
    [
        (FakeGpu(0), "MIG is off", "-mig 1"),
        (FakeGpu(0, pending=True), "MIG is off, and will be on", "nvidia-smi -r"),
        (FakeGpu(0, mig=True, pending=False), "MIG is on, and will be off", "-mig 1"),
    ],
    ids=["off", "pending", "leaving"],
)
def test_mig_s_mode_is_never_changed(watch: Watch, nvml: FakeNvml, gpu: FakeGpu, says: str, does: str) -> None:
    """What the operator has to do is said; when it is done, what is declared is made without a restart."""
    nvml.gpus = [gpu]
    nvml.write()

    async def story(watched: Any) -> None:
        await watched.wait(lambda: watched.told)
        assert says in watched.told[0][1]
        assert does in watched.told[0][1]
        with pytest.raises(BedsitError) as refused:
            await do(watched)
        assert refused.value.code == "device.not_ready"
        assert nvml.cuts == []
        nvml.change(0, mig=True, pending=True)
        await watched.wait(lambda: list_there(watched) == ["1g.10gb@0", "3g.40gb@4"])

    watch(story, declared=PAIR)


def test_a_gpu_that_vanished_between_plan_and_apply_is_not_mistaken(watch: Watch, nvml: FakeNvml) -> None:
    """Another one has its index by then; nothing is cut there."""
    nvml.gpus = [FakeGpu(0, mig=True), FakeGpu(1, mig=True)]
    nvml.write()

    async def story(watched: Any) -> None:
        watched.declare({nvml.gpus[0].uuid: ["1g.10gb"]})
        token = make_token(await watched.partitions.look(None))
        nvml.gpus = nvml.gpus[1:]
        nvml.write()
        with pytest.raises(BedsitError) as refused:
            await watched.partitions.apply(None, token, lambda _: None)
        assert refused.value.code == "device.not_ready"
        assert "does not list the GPU" in refused.value.message
        assert nvml.cuts == []
        with pytest.raises(Uncut) as uncut:
            await watched.devices.cut("create", FakeGpu(0).uuid, profile=19, start=0, size=1)
        assert "not there any more" in uncut.value.trouble.what

    watch(story)


def test_a_declared_index_that_is_another_gpu_by_now_is_seen(watch: Watch, nvml: FakeNvml) -> None:
    """The token stands for the UUID."""
    nvml.gpus = [FakeGpu(0, mig=True), FakeGpu(1, mig=True)]
    nvml.write()

    async def story(watched: Any) -> None:
        watched.declare({"0": ["1g.10gb"]})
        planned = await watched.partitions.look(None)
        assert nvml.gpus[0].uuid in str(planned)
        token = make_token(planned)
        nvml.gpus = nvml.gpus[1:]
        nvml.write()
        with pytest.raises(BedsitError) as refused:
            await watched.partitions.apply(None, token, lambda _: None)
        assert refused.value.code in ("device.moved", "device.not_ready")
        assert nvml.cuts == []

    watch(story)


def test_of_two_operators_at_once_one_is_told_to_look_again(watch: Watch, card: FakeNvml) -> None:
    """Who comes second has seen what is not so any more."""

    async def story(watched: Any) -> None:
        token = make_token(await watched.partitions.look(None))
        apply = watched.partitions.apply
        answers = await asyncio.gather(*(apply(None, token, lambda _: None) for _ in range(2)), return_exceptions=True)
        refused = [each for each in answers if isinstance(each, BedsitError)]
        assert [each.code for each in refused] == ["device.moved"]
        assert list_there(watched) == ["1g.10gb@0", "3g.40gb@4"]

    watch(story, declared=PAIR, creates_missing=False)


def test_somebody_else_s_cut_is_not_overlapped(watch: Watch, card: FakeNvml) -> None:
    """The driver refuses what was planned before, and the next plan knows of it."""

    async def story(watched: Any) -> None:
        def progress(text: str) -> None:
            if "create" in text:
                card.instances = [FakeInstance(0, 0, 7, 9, 0)]
                card.write()

        token = make_token(await watched.partitions.look(None))
        _, (outcome,) = await watched.partitions.apply(None, token, progress)
        assert "something else was made there" in outcome.trouble.what
        assert list_there(watched) == ["3g.40gb@0"]
        assert card.cuts == []

    watch(story, declared={"0": ["4g.40gb"]}, creates_missing=False)


def test_a_number_that_was_given_again_is_not_mistaken(watch: Watch, card: FakeNvml) -> None:
    """Instances are named by numbers that the driver uses again: who names one says what it takes it for."""
    card.instances = [FakeInstance(0, 0, 1, 14, 4)]
    card.write()

    async def story(watched: Any) -> None:
        with pytest.raises(Uncut) as uncut:
            await watched.devices.cut("destroy", card.gpus[0].uuid, gpu_instance=1, profile=9)
        assert "not there any more" in uncut.value.trouble.what
        assert list_there(watched) == ["2g.20gb@4"]

    watch(story)


def test_one_gpu_that_fails_does_not_keep_the_others_back(watch: Watch, nvml: FakeNvml) -> None:
    """Each is cut for itself."""
    nvml.gpus = [FakeGpu(0, mig=True), FakeGpu(1, mig=True)]
    nvml.write()

    async def story(watched: Any) -> None:
        with nvml.saying("fail nvmlDeviceCreateGpuInstanceWithPlacement 0 23"):
            states = [each.state for each in await do(watched)]
            assert states == ["failed", "done"]

    watch(story, declared={"0": ["7g.80gb"], "1": ["7g.80gb"]}, creates_missing=False)


def test_what_cannot_be_declared_is_told_when_the_gpu_is_seen(watch: Watch, card: FakeNvml) -> None:
    """By the driver's own tables; and apply refuses it as a mistake of the configuration."""

    async def story(watched: Any) -> None:
        await watched.wait(lambda: watched.told)
        assert "this GPU has no 3g.71gb; did you mean '3g.40gb'?" in watched.told[0][1]
        with pytest.raises(BedsitError) as refused:
            await do(watched)
        assert refused.value.code == "config.invalid"
        assert card.cuts == []

    watch(story, declared={"0": ["3g.71gb"]})


def test_without_the_fake_nothing_is_cut(watch: Watch, card: FakeNvml) -> None:
    """What these tests see comes through the library and from nowhere else."""
    card.remove()

    async def story(watched: Any) -> None:
        (plan,) = await watched.partitions.look(None)
        assert plan.uuid is None
        assert "no NVML library" in plan.trouble.what
        assert card.cuts == []

    watch(story, declared=PAIR)
