"""Trains many LoRA trials at once: one frozen base, one forward and backward over all their rows.

Each trial has its own adapter, loss, beta, learning rate, schedule, batch size, clipping and seed,
and trains as it would alone. Trials share only the base's matrix products, whose rows don't mix.
"""
