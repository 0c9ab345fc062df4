"""The order of the jail."""

from bedsit.sandbox.jail.steps import STEPS


def test_the_order_is_this_one() -> None:
    """Whoever reorders the jail has to say so here."""
    assert [step.name for step in STEPS] == [
        "one_thread",
        "pid_namespace",
        "own_group",
        "join_cgroup",
        "oom_score",
        "own_session",
        "mount_namespace",
        "network_namespace",
        "ipc_namespace",
        "uts_namespace",
        "cgroup_namespace",
        "close_descriptors",
        "open_sysctl",
        "make_root",
        "devices",
        "scratch",
        "trees",
        "slot_folder",
        "proc",
        "pivot",
        "seal_root",
        "null_streams",
        "no_keys",
        "no_groups",
        "user_namespace",
        "map_ids",
        "no_nesting",
        "bounding_set",
        "fork_worker",
        "rlimits",
        "own_ids",
        "no_capabilities",
        "die_with_init",
        "own_proc",
        "no_trace",
        "no_new_privs",
        "name",
        "environment",
        "reseed",
        "landlock",
        "seccomp",
        "self_check",
    ]


def test_every_step_says_why_it_stands_where_it_stands() -> None:
    """The table is its own documentation."""
    assert all(step.why and step.roles for step in STEPS)


def test_what_may_be_missing() -> None:
    """Every other wall is required: the spawn fails when the kernel refuses it. These three are reported as off."""
    assert [step.name for step in STEPS if not step.required] == ["user_namespace", "landlock", "seccomp"]
