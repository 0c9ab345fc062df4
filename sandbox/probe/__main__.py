"""``python -m bedsit.sandbox.probe``."""

from bedsit.sandbox.probe.look import main

main()
