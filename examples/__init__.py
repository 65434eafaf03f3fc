"""Small whole uses of the public interfaces. Nothing in the product imports them statically."""
