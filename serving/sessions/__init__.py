"""Session and counter folds, the session store and how requests read it."""
