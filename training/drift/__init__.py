"""When the world has changed: monitors over the live line, and what an alarm asks for."""
