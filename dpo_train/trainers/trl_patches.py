"""Changes inside TRL for this process, and why they are needed. TRL's version is pinned."""

import trl.trainer.dpo_trainer
import trl.trainer.utils

# DPOTrainer hashes all weights to name a cache of reference log-probs. Our trials bring their own
# log-probs and never use it, and the hash takes a second or more per trial, and a copy to the CPU,
# for a model of 0.5B. So we skip the hash.
trl.trainer.dpo_trainer.hash_module = lambda _: ""

# The fused LM head scores only completion positions on Triton devices, and all positions elsewhere,
# so that Neuron need not recompile. On a CPU nothing is compiled, and most positions are prompt
# and padding. So we let it score only completions everywhere. This function decides nothing else:
# the kernels choose their device in another way.
trl.trainer.utils._use_triton = lambda _: True
