"""Whether a candidate takes over: gates, promotion rules, the guard, and acceptance of int8 rows. Pure."""
