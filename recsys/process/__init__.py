"""Building blocks of a part process: run loop, log consumer, snapshot file, clock and process tuning."""
