"""Trains one trial of Direct Preference Optimization (DPO). It uses no Ray, tracker or HTTP."""

import logging
import os

# huggingface_hub reads this when it is imported, so it must be set before any import of it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# PEFT and TRL import bitsandbytes if it is installed. On some CPUs it then warns that a kernel from
# the Hub is missing. Nothing here uses that kernel, so we hide the warning.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
