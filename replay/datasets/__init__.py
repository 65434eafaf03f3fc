"""Data sets as events in time order: event logs and KuaiRand."""
