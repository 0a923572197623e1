"""`make bench-training`: the race with TRL, and how near training comes to what its matrix products reach alone.

scenes        what is trained, on what, with which settings: the same for both sides
build         makes a scene's folder: weights, data, the reward model
ours, theirs  the two contestants, each a process of its own
watch         what both contestants are watched with
contest       starts a process on a quiet machine and weighs it
environment   where TRL comes from: the project's for the newest, a folder of its own for its last PPO
quality       one judge for the models that both sides leave
limit         the matrix products alone
sweep         how TRL's settings were found
tables        what docs/benchmarks.md shows
"""
