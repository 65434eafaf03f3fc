"""KuaiRand: download and reader of the data set. ``replay.datasets.open_dataset`` finds it in a checkout."""
