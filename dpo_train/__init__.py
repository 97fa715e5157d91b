"""Trains one Direct Preference Optimization trial. Knows no Ray, no tracker and no HTTP."""

import logging
import os

# Read by huggingface_hub when it is imported, so it must stand here.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# PEFT and TRL import bitsandbytes where it is installed. On some CPUs it then says that it lacks a
# kernel from the Hub, which nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
