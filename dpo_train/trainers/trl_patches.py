"""What is changed inside TRL, for this process, and why. TRL's version is pinned beside it."""

import trl.trainer.dpo_trainer
import trl.trainer.utils

# DPOTrainer hashes all weights to name a cache of reference log-probs that our trials, which bring
# theirs, never use: a second and more per trial and a copy to the CPU for a model of 0.5B.
trl.trainer.dpo_trainer.hash_module = lambda _: ""

# The fused LM head scores only completion positions on Triton devices and all positions elsewhere,
# so that Neuron need not recompile. On a CPU nothing is compiled, and most positions are prompt
# and padding. This name decides that alone; the kernels pick their device by their own.
trl.trainer.utils._use_triton = lambda _: True
