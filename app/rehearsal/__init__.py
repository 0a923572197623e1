"""Simulated annotators with a hidden taste, and the whole loop rehearsed from outside."""

import os

# Read when torch is first imported. What is measured shares its cores with the product that is being rehearsed: threads
# that wait for each other must sleep, not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
