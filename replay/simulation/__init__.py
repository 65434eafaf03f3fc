"""The simulated world and its viewers: users with drifting tastes who watch lists."""
