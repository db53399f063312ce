"""Imported by the fork server alone: what every worker process of the real cascade needs, so that it is there at once.

Nothing here may start a thread or touch a device.
"""

import ldm.loading
import ldm.preview
import ldm.schedulers
import service.cascade
import sr3.enlarge
import sr3.schedulers

__all__ = ["ldm", "service", "sr3"]
