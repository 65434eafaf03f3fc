"""The continual trainer: steps are cut, recorded, learned by workers, and published."""
