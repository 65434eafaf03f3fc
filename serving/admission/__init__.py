"""Load shedding: deadlines, a fair lock for computation, and refusing requests early."""
