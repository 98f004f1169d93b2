# SPDX-License-Identifier: Apache-2.0
"""One profile for every generated test: the same cases in every run, no deadline."""

from __future__ import annotations

import hypothesis
import torch

hypothesis.settings.register_profile(
    "attentile", derandomize=True, deadline=None, database=None, print_blob=False,
    report_multiple_bugs=False, suppress_health_check=list(hypothesis.HealthCheck))
hypothesis.settings.load_profile("attentile")

# Problems are small: threads that wait for each other cost more than they bring.
torch.set_num_threads(1)
