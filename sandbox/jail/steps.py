"""The jail, as one ordered table. Nobody reorders it by accident: a test holds the order.

Guarantees: when `enter` returns, every step for this role ran, or is named in `context.missing`; a required step that
fails raises StepFailed, and the caller must end the process.
Assumes: real root, one thread, a child of the zygote that nobody else knows yet; no tenant byte anywhere in sight.
Why not a library: what matters here is the order, and the order is this page.
"""

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from bedsit.sandbox.jail import (
    birth,
    descriptors,
    identity,
    landlock,
    limits,
    namespaces,
    privileges,
    root,
    seccomp,
    selfcheck,
)
from bedsit.sandbox.jail.context import Context, Role


class Step(NamedTuple):
    """One wall, or one thing that a wall needs: what to do, in which process, and why it stands here."""

    name: str
    run: Callable[[Context], None]
    roles: tuple[Role, ...]
    why: str
    needs_root: bool = True
    required: bool = True


class StepFailed(Exception):
    """A required step failed; nothing after it ran."""

    def __init__(self, step: str, cause: BaseException | str) -> None:
        super().__init__(step, cause)
        self.step = step
        self.number = cause.errno or 0 if isinstance(cause, OSError) else 0
        self.message = cause if isinstance(cause, str) else f"{type(cause).__name__}: {cause}"


_ZYGOTE: Final[tuple[Role, ...]] = ("zygote",)
_SLOT: Final[tuple[Role, ...]] = ("slot",)
_INIT: Final[tuple[Role, ...]] = ("init",)
_WORKER: Final[tuple[Role, ...]] = ("worker",)
_BOTH: Final[tuple[Role, ...]] = ("init", "worker")

# fmt: off
STEPS: Final[tuple[Step, ...]] = (
    Step("one_thread", descriptors.require_one_thread, _ZYGOTE,
         "before any fork: a copy has one thread, but every lock that the others held", needs_root=False),
    Step("pid_namespace", birth.ask_pid_namespace, _ZYGOTE,
         "asked of the clone: a process cannot move itself, only its child"),
    Step("own_group", birth.ask_own_group, _ZYGOTE,
         "asked of the clone: no instruction runs outside the group, and nobody waits for a move"),

    Step("join_cgroup", limits.join_cgroup, _SLOT,
         "the child's first act: all it does is then charged and bounded; cgroup_namespace needs it"),
    Step("oom_score", limits.offer_to_oom_killer, _SLOT,
         "while /proc is still the box's own"),

    Step("own_session", identity.take_session, _SLOT,
         "before the fork, so that init and worker share it, and the zygote and other slots do not", needs_root=False),

    Step("mount_namespace", namespaces.enter_mount_namespace, _SLOT,
         "by real root, like the next four, so that no capability won in the user namespace has power over it"),
    Step("network_namespace", namespaces.enter_network_namespace, _SLOT,
         "before /proc is mounted, which shows the network of whoever looks"),
    Step("ipc_namespace", namespaces.enter_ipc_namespace, _SLOT,
         "with its siblings"),
    Step("uts_namespace", namespaces.enter_uts_namespace, _SLOT,
         "with its siblings; the name needs real root's capability over this very namespace"),
    Step("cgroup_namespace", namespaces.enter_cgroup_namespace, _SLOT,
         "after join_cgroup: where we are now becomes the root of what we see"),

    Step("close_descriptors", descriptors.close_descriptors, _SLOT,
         "before the root changes: an open folder of the box would be a way back"),

    Step("open_sysctl", namespaces.open_sysctl, _SLOT,
         "after close_descriptors, before pivot: later the box's /proc/sys has no name"),

    Step("make_root", root.make_root, _SLOT,
         "after mount_namespace, or it would be the box's root"),
    Step("devices", root.bind_devices, _SLOT,
         "before pivot, while the box's nodes can be named"),
    Step("scratch", root.mount_scratch, _SLOT,
         "after devices, since /dev/shm lies in /dev; before user_namespace, where tmpfs could not belong to the box"),
    Step("trees", root.bind_trees, _SLOT,
         "as real root: Python may live below folders that are root's alone; after scratch, for it may live in /tmp"),
    Step("slot_folder", root.bind_slot_folder, _SLOT,
         "before pivot, while the folder can be named"),
    Step("proc", root.mount_proc, _SLOT,
         "after pid_namespace, whose processes it shows, and before the last right to mount is gone"),
    Step("pivot", root.pivot, _SLOT,
         "when all binds are made: from here on the box's files have no names"),
    Step("seal_root", root.seal_root, _SLOT,
         "after pivot, the last thing that wrote to the root"),
    Step("null_streams", descriptors.attach_null, _SLOT,
         "after pivot: the streams must be of the slot's /dev, not of the box's"),

    Step("no_keys", privileges.drop_keys, _SLOT,
         "as real root, whose quota of keys is not the tenants' to use up"),
    Step("no_groups", privileges.drop_groups, _SLOT,
         "before user_namespace, which forbids setgroups"),
    Step("user_namespace", namespaces.enter_user_namespace, _SLOT,
         "last of the namespaces: it owns none of the others, so being powerful inside means nothing",
         required=False),
    Step("map_ids", namespaces.map_ids, _SLOT,
         "right after user_namespace: until then everybody is nobody"),
    Step("no_nesting", namespaces.forbid_nesting, _SLOT,
         "inside the user namespace, whose own limit it is, while there is a capability to set it"),
    Step("bounding_set", privileges.drop_bounding_set, _SLOT,
         "after user_namespace, which starts with a full set; before the fork, so that both inherit the loss"),

    Step("fork_worker", descriptors.fork_worker, _SLOT,
         "as late as rights allow: one more id can only be taken by someone who still may"),

    Step("rlimits", limits.set_rlimits, _BOTH,
         "before own_ids: the hard limits can then never be raised again", needs_root=False),
    Step("own_ids", privileges.take_own_ids, _BOTH,
         "after the fork: init and worker are different users, so the worker can neither signal nor trace its init"),
    Step("no_capabilities", privileges.drop_capabilities, _BOTH,
         "after own_ids, which needs one"),
    Step("die_with_init", privileges.die_with_init, _WORKER,
         "after own_ids: a change of ids silently clears it", needs_root=False),
    Step("own_proc", privileges.allow_own_proc, _WORKER,
         "after own_ids, for the same reason", needs_root=False),
    Step("no_trace", privileges.refuse_trace, _INIT,
         "after own_ids, for the same reason", needs_root=False),
    Step("no_new_privs", privileges.refuse_new_privileges, _BOTH,
         "before the filters, which demand it of whoever has no capability", needs_root=False),

    Step("name", identity.take_name, _BOTH,
         "when each is what its name says", needs_root=False),
    Step("environment", identity.take_environment, _BOTH,
         "before a filter could stand in the way", needs_root=False),
    Step("reseed", identity.reseed, _WORKER,
         "after the last fork: there are no further copies", needs_root=False),

    Step("landlock", landlock.restrict, _BOTH,
         "after no_new_privs, which it demands, and before seccomp, which refuses its calls",
         needs_root=False, required=False),
    Step("seccomp", seccomp.install, _BOTH,
         "the narrowest wall last: no later step could make a call that a worker must not",
         needs_root=False, required=False),

    Step("self_check", selfcheck.check_self, _WORKER,
         "when all is done: says what is missing while nobody depends on it yet", needs_root=False),
)
# fmt: on


def enter(context: Context, steps: tuple[Step, ...]) -> None:
    """Run the *steps* of the context's role, in order; `fork_worker` changes the role, and so what follows."""
    for step in steps:
        if context.role not in step.roles:
            continue
        started = time.perf_counter()
        try:
            step.run(context)
        except Exception as e:
            # Only a kernel that says no makes a wall missing; anything else is a bug, or an order that is broken.
            if step.required or not isinstance(e, OSError):
                raise StepFailed(step.name, e) from e
            context.missing[step.name] = str(e)
        context.steps_ms[step.name] = round((time.perf_counter() - started) * 1000, 3)
