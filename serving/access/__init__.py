"""Access to the API: keys, user tokens, impression tokens, hosts, quotas, audit."""
