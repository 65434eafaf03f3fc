"""The demo: data, warm-up and addresses of a whole system, and its unattended check."""
