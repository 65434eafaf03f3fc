"""Work behind the commands that change or create data: downloads, offline training, deletion."""
