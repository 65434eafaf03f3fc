"""Logs of the past as events in time order: KuaiRand and event logs. Read by ``recsys replay``."""
