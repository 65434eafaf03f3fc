"""Assignment, policies, and the measurements that decide. Pure; used by serving and training."""
