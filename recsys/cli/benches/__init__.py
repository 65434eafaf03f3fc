"""What `recsys bench` measures: speed, beside what one would pick instead."""
