"""The walls, and what runs inside them: zygote, slot init, jail, cgroups, and the checks from outside."""
