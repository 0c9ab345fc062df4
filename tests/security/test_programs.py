"""Attempts to run something else: another program, one of its own making, another process."""

from tests_support.attempts import Attempt, Ended, Removal, make_tests

COPY = """
import os, shutil
def copy(path):
    shutil.copyfile("/usr/bin/true", path)
    os.chmod(path, 0o4755)
"""
DONE = Ended(0)

ATTEMPTS = (
    Attempt(
        "9",
        "run a set-user-id file from /tmp",
        first="seccomp",
        second="landlock, noexec",
        source=COPY + "copy('/tmp/true'); result = attempt(lambda: os.execv('/tmp/true', ['true']))",
        refused="Operation not permitted",
        twin=COPY + "result = attempt(lambda: copy('/tmp/true'))",
        removals=(
            Removal("Permission denied", without="seccomp"),
            Removal("Permission denied", without="seccomp,landlock"),
            Removal(DONE, without="seccomp,landlock", bad="scratch:powerful"),
        ),
    ),
    Attempt(
        "10",
        "run a program of the box's",
        first="seccomp",
        second="landlock",
        source="import os; result = attempt(lambda: os.execv('/usr/bin/true', ['true']))",
        refused="Operation not permitted",
        twin="import os; result = attempt(lambda: os.access('/usr/bin/true', os.X_OK))",
        removals=(Removal("Permission denied", without="seccomp"), Removal(DONE, without="seccomp,landlock")),
    ),
    Attempt(
        "11",
        "run a program from memory",
        first="seccomp",
        second="landlock",
        source="""
import os
fd = os.memfd_create("true")
os.write(fd, open("/usr/bin/true", "rb").read())
result = attempt(lambda: os.execve(fd, ["true"], {}))
""",
        refused="Operation not permitted",
        twin="import os; result = attempt(lambda: os.write(os.memfd_create('x'), b'x'))",
        removals=(Removal("Permission denied", without="seccomp"), Removal(DONE, without="seccomp,landlock")),
    ),
    Attempt(
        "12",
        "be two: fork, and clone without CLONE_THREAD",
        first="seccomp",
        second="pids.max",
        source="""
import os
def finish(child):
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
result = every([attempt(lambda: finish(os.fork())), attempt(lambda: finish(call("clone", 17, 0, 0, 0, 0)))])
""",
        refused="Operation not permitted",
        twin="""
import threading
done = []
thread = threading.Thread(target=lambda: done.append("ok"))
thread.start()
thread.join()
result = done[0]
""",
        removals=(Removal("ok", without="seccomp"),),
    ),
)

test_attack, test_twin, test_without = make_tests(ATTEMPTS)
