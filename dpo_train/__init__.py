"""Trains one Direct Preference Optimization trial. Knows no Ray, no tracker and no HTTP."""

import os

# Read by huggingface_hub when it is imported, so it must stand here.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
