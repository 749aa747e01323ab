"""What can be wrong with a machine and a stack on it: one module for each group of checks.

A check is a generator of findings about a `Case`; it changes nothing, and takes seconds at most.
"""

from xnai.deploy.doctor.examining import examine
from xnai.deploy.doctor.finding import Case, Finding

__all__ = ["Case", "Finding", "examine"]
